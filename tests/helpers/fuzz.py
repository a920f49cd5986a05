"""Fuzzed surfaces: for each, a check of one input that is made from a seed, and a watch over many."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# A check takes a seed, makes an input from it, and raises AssertionError where the surface does what it must
# not: anything but an answer or its own error. It names the input in its message.
SURFACES = {
    "jsonl": "tests.helpers.jsonl_fuzz:check_seed",
    "config": "tests.helpers.file_fuzz:check_config",
    "safetensors": "tests.helpers.file_fuzz:check_safetensors",
    "tokenizer": "tests.helpers.file_fuzz:check_tokenizer",
}
LIMIT_S = 5.0  # of CPU time per input


class Hang(BaseException):  # so that nothing under test handles it
    pass


def check_of(surface: str) -> Callable[[int], None]:
    """The check of a surface; imported late, for each needs libraries of its own."""
    module, name = SURFACES[surface].split(":")
    return getattr(importlib.import_module(module), name)


def failures(check: Callable[[int], None], seeds: Iterable[int]) -> Iterator[str]:
    """A line for each seed whose input got through: a traceback, or no end within the limit."""
    for seed in seeds:
        try:
            with time_limit(LIMIT_S):
                check(seed)
        except Hang:
            yield f"seed {seed}: no end after {LIMIT_S} s"
        except Exception as error:
            yield f"seed {seed}: {type(error).__name__}: {error}"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hang after this much of the process's CPU time, which a busy machine does not stretch."""

    def hang(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
