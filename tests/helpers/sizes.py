"""How much the tests do: a part by default, all of it with `--long` (`make test-long`)."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")
LONG = "JBATCH_TEST_LONG"  # set by tests/conftest.py; in the environment, so that subprocesses know it too


def sized(short: T, long: T) -> T:
    """The one that this run of the tests asks for."""
    return long if os.environ.get(LONG) else short
