"""A file system that fails at its n-th call, under a job in this process, and people who touch its output."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENOSPC, EIO = errno.ENOSPC, errno.EIO
BY_PATH = ("open", "replace", "unlink", "listdir")
BY_DESCRIPTOR = ("write", "pread", "fsync", "ftruncate", "fchmod", "fchown")
OTHERS_LINE = b'{"custom_id":"of somebody else","text":"' + b"y" * 500 + b'"}\n'


class Fault:
    """Something goes wrong once, or from then on (`lasts`)."""

    lasts = False

    def call(self, name: str, real: Callable[..., Any], args: tuple, where: Path) -> Any:
        """In the place of a call of the system, on the file `where`."""
        raise NotImplementedError


class Fails(Fault):
    """The call fails; of a write, half is done. A full disk lasts, and lets pass what takes no room."""

    def __init__(self, code: int):
        self._code, self.lasts = code, code == errno.ENOSPC

    def call(self, name, real, args, where):
        creates = name == "open" and args[1] & os.O_CREAT and not where.exists()
        if self.lasts and not creates and name not in ("write", "fsync", "replace"):
            return real(*args)
        if name == "write" and len(args[1]) > 1:
            real(args[0], bytes(args[1])[: len(args[1]) // 2])
        named = (str(where),) if name in BY_PATH else ()
        raise OSError(self._code, os.strerror(self._code), *named)


class Short(Fault):
    """A write does less than was asked for."""

    lasts = True

    def call(self, name, real, args, where):
        if name == "write":
            return real(args[0], bytes(args[1])[:3])
        return real(*args)


class Touched(Fault):
    """Somebody does something to the output."""

    def __init__(self, touch: Callable[[Path], object], output: Path):
        self._touch, self._output = touch, output
        self.stays = False  # what was appended

    def call(self, name, real, args, where):
        if self._output.exists():
            self._touch(self._output)
            # Else another file takes the output's place, or its torn end is cut off, at this very moment.
            replaces = name == "replace" and Path(args[1]).resolve() == self._output
            self.stays = not replaces and not (name == "ftruncate" and where == self._output)
        return real(*args)


def append(output: Path) -> None:
    with output.open("ab") as file:
        file.write(OTHERS_LINE)


def halve(output: Path) -> None:
    os.truncate(output, output.stat().st_size // 2)


def empty(output: Path) -> None:
    os.truncate(output, 0)


def exchange(output: Path) -> None:
    """Another file with the same content, as editors write it."""
    copy = output.with_name("copy")
    copy.write_bytes(output.read_bytes())
    copy.rename(output)


class Disk:
    """While it is entered, the `at`-th call for a file below `folder` goes wrong. `num_calls` counts them."""

    def __init__(self, folder: Path, fault: Fault | None = None, at: int = 0):
        self._folder, self.fault, self._at = folder.resolve(), fault, at
        self._inside = False  # a fault: what it does itself does not fail
        self.num_calls = 0

    @property
    def came(self) -> bool:
        """Whether there were so many calls."""
        return self.num_calls >= self._at

    @contextmanager
    def entered(self) -> Iterator[Disk]:
        real = {name: getattr(os, name) for name in (*BY_PATH, *BY_DESCRIPTOR, "fdopen")}
        for name in (*BY_PATH, *BY_DESCRIPTOR):
            setattr(os, name, self._faulty(name, real[name]))
        os.fdopen = _unbuffered_by_os(real["fdopen"])
        try:
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def _faulty(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            where = _path_of(args[0], name)
            if self._inside or where is None or not where.is_relative_to(self._folder):
                return real(*args)
            self.num_calls += 1
            fault = self.fault
            if fault is None or not (self.num_calls == self._at or (fault.lasts and self.came)):
                return real(*args)
            self._inside = True
            try:
                return fault.call(name, real, args, where)
            finally:
                self._inside = False

        return call


def _path_of(target: Any, name: str) -> Path | None:
    if name in BY_PATH:
        return Path(os.path.abspath(target))
    try:
        return Path(os.readlink(f"/proc/self/fd/{target}"))
    except OSError:
        return None


def _unbuffered_by_os(real: Callable[..., Any]) -> Callable[..., Any]:
    """`os.fdopen`, whose writes go through `os.write`."""

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            return os.write(self.fileno(), data)

    def fdopen(fd: int, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode != "wb":
            return real(fd, mode, *args, **options)
        return io.BufferedWriter(Raw(fd, mode))

    return fdopen
