"""The logger "jbatch" of a command: its lines go where what the command says goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jbatch.progress import LOGGER


class _Says(logging.Handler):
    def __init__(self, say: Callable[[str], None]):
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


@contextmanager
def logged_by(say: Callable[[str], None]) -> Iterator[None]:
    """Have lines of progress said, and by nobody else."""
    handler, before = _Says(say), (LOGGER.level, LOGGER.propagate)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)  # no assignment: a logger remembers which levels it lets through
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]
