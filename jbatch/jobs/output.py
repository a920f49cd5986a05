"""A job's output: results, appended one at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from jbatch.jobs.files import check_in_place, sync_directory

SYNC_EVERY_S = 3.0
BLOCK = 1 << 16  # bytes


class Output(Protocol):
    """Where results go."""

    def write(self, result: bytes) -> int:
        """Write a result, so that it outlives this process; gives its offset. Raises OSError."""
        ...

    def sync(self, *, now: bool = False) -> None:
        """Make what was written outlive a power cut, every few seconds, or now. Raises OSError."""
        ...


class OutputFile:
    """A file to append to, which holds whole results (see `remove_torn`).

    A result has reached the kernel when `write` returns, and the disk when `sync` does. One that fails
    halfway, as on a full disk, is taken back.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic):
        self.path, self._clock = path, clock
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        sync_directory(path)
        self._end = os.lseek(self._fd, 0, os.SEEK_END)
        self._synced, self._synced_at = self._end, clock()

    def write(self, result: bytes) -> int:
        begin, rest = self._end, memoryview(result)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            with suppress(OSError):  # else the next run does it
                os.ftruncate(self._fd, begin)
            raise OSError(error.errno, os.strerror(error.errno or 0), self.path) from error
        self._end += len(result)
        return begin

    def sync(self, *, now: bool = False) -> None:
        if not now and self._clock() - self._synced_at < SYNC_EVERY_S:
            return
        check_in_place(self._fd, self.path)
        if self._synced != self._end:
            os.fsync(self._fd)
        self._synced, self._synced_at = self._end, self._clock()

    def close(self) -> None:
        os.close(self._fd)


class OutputStream:
    """Standard output, a pipe or a device: nothing that was written can be read back."""

    def __init__(self, fd: int, name: str):
        self._fd, self._name, self._end = fd, name, 0

    def write(self, result: bytes) -> int:
        begin, rest = self._end, memoryview(result)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), self._name) from error
        self._end += len(result)
        return begin

    def sync(self, *, now: bool = False) -> None:
        """Do nothing: a reader has what was written."""


def remove_torn(path: str) -> int:
    """Cut off what follows the last end of line, torn by a kill or a power cut; how many bytes that was."""
    fd = os.open(path, os.O_RDWR)
    try:
        size = end = os.lseek(fd, 0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - BLOCK)
            at = os.pread(fd, end - begin, begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end = begin
        if end < size:
            os.ftruncate(fd, end)
        return size - end
    finally:
        os.close(fd)
