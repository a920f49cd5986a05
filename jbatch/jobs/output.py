"""A job's output: results, appended one at a time."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from jbatch.errors import ConfigError, OutputChanged
from jbatch.jobs.files import NEVER_FOLLOW, is_at, naming, sync_directory
from jbatch.jobs.lock import lock_file

SYNC_EVERY_S = 3.0
BLOCK = 1 << 16  # bytes
TORN = re.compile(rb'\0|\{"|\{$')  # how what is left of a result begins: NULs after a power cut


class Output(Protocol):
    """Where results go."""

    def write(self, result: bytes) -> int:
        """Write a result, so that it outlives this process; gives its offset. Raises OSError."""
        ...

    def sync(self, *, now: bool = False) -> None:
        """Make what was written outlive a power cut, every few seconds, or now. Raises OSError."""
        ...


class OutputFile:
    """A file to append to, which holds whole results (see `remove_torn`). It is made where it is not there,
    and locked as long as it is open.

    A result has reached the kernel when `write` returns, and the disk when `sync` does. One that fails
    halfway, as on a full disk, is taken back. What somebody else writes into the file stays, and is noticed
    at the next `write` or `sync`.

    Raises:
      ConfigError: where another process writes to it, whatever name it has there.
      OutputChanged: from any method, where the file is another than this one left it.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic):
        self.path, self._clock = path, clock
        self._fd = self._open()
        self._end = self._synced = os.fstat(self._fd).st_size
        self._synced_at = clock()

    def _open(self) -> int:
        """Every write goes to the end, wherever that is by then: over nobody's bytes, and behind no hole."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NEVER_FOLLOW, 0o644)
        try:
            lock_file(fd, self.path)
            sync_directory(self.path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @property
    def size(self) -> int:
        """Bytes: what it had when it was opened, and what was written since."""
        return self._end

    def reopen(self) -> None:
        """Go on with the file that has replaced this one."""
        fd = self._open()
        os.close(self._fd)
        self._fd = fd
        self._end = self._synced = os.fstat(self._fd).st_size

    def write(self, result: bytes) -> int:
        self._check_size(self._end)
        rest = memoryview(result)
        try:
            with naming(self.path):
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
        except OSError:
            with suppress(OSError, OutputChanged):  # else the next run does it
                self._check_size(self._end + len(result) - len(rest))
                os.ftruncate(self._fd, self._end)
            raise
        self._end += len(result)
        return self._end - len(result)

    def sync(self, *, now: bool = False) -> None:
        if not now and self._clock() - self._synced_at < SYNC_EVERY_S:
            return
        self.check()
        if self._synced != self._end:
            with naming(self.path):
                os.fsync(self._fd)
        self._synced, self._synced_at = self._end, self._clock()

    def check(self) -> None:
        """Raise OutputChanged where the file is another, or longer or shorter, than this one left it."""
        if not is_at(self._fd, self.path):
            raise OutputChanged(self.path, "it was removed or replaced")
        self._check_size(self._end)

    def _check_size(self, expected: int) -> None:
        size = os.fstat(self._fd).st_size
        if size != expected:
            raise OutputChanged(self.path, f"it has {size} bytes, and should have {expected}")

    def remove_torn(self) -> int:
        """Cut off what follows the last end of line, torn by a kill or a power cut; how many bytes that was.

        Raises:
          ConfigError: where that is no beginning of a result: somebody else wrote it.
        """
        size = self._end
        with naming(self.path):
            end = self._end_of_last_line()
            if end == size:
                return 0
            is_torn = TORN.match(os.pread(self._fd, 2, end))
            self.check()
            if not is_torn:
                reason = f"ends with {size - end} bytes that are no result and no part of one: remove them"
                raise ConfigError("output", self.path, reason)
            os.ftruncate(self._fd, end)
        self._end = self._synced = end
        return size - end

    def _end_of_last_line(self) -> int:
        end = self._end
        while end > 0:
            begin = max(0, end - BLOCK)
            at = os.pread(self._fd, end - begin, begin).rfind(b"\n")
            if at >= 0:
                return begin + at + 1
            end = begin
        return 0

    def close(self) -> None:
        os.close(self._fd)


class OutputStream:
    """Standard output, a pipe or a device: nothing that was written can be read back."""

    def __init__(self, fd: int, name: str):
        self._fd, self._name, self._end = fd, name, 0

    def write(self, result: bytes) -> int:
        begin, rest = self._end, memoryview(result)
        with naming(self._name):
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        self._end += len(result)
        return begin

    def sync(self, *, now: bool = False) -> None:
        """Do nothing: a reader has what was written."""


def open_stream(output_file: str) -> OutputStream:
    """A pipe, a device, or "-".

    Raises:
      ConfigError: where standard output is closed: what a library prints would be all that is seen of it.
    """
    if output_file != "-":
        return OutputStream(os.open(output_file, os.O_WRONLY), output_file)
    try:
        is_closed = fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    except OSError:
        is_closed = True
    if is_closed:
        raise ConfigError("output_file", output_file, "standard output is closed")
    return OutputStream(1, "standard output")
