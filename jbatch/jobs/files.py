"""Files that are there whole or not at all, and the lock of an output."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from jbatch.errors import ConfigError

TEMPORARY = ".jbatch-tmp"


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Write a file that takes `path`'s place at the end; before that, and where it fails, nothing changes."""
    temporary = f"{path}{TEMPORARY}"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # an interrupt included
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path)


def remove_leftover(path: str) -> None:
    """Remove what was written to replace `path` and, after a kill, did not."""
    with suppress(FileNotFoundError):
        os.unlink(f"{path}{TEMPORARY}")


def sync_directory(path: str) -> None:
    """Make the name of a new file last through a power cut."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of the output `path`: PATH.lock, which goes with this process, however it ends.

    Raises:
      ConfigError: where another process holds it, naming its id.
    """
    lock_path = f"{path}.lock"
    fd = _lock(lock_path)
    try:
        yield
    finally:
        with suppress(OSError):  # its directory may have vanished
            os.unlink(lock_path)  # while it is held: who waited finds another file there (see _lock)
        os.close(fd)


def _lock(lock_path: str) -> int:
    while True:
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            raise ConfigError(
                "output", lock_path.removesuffix(".lock"), f"process {pid or '?'} is writing to it"
            ) from None
        if _is_at(fd, lock_path):
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
            return fd
        os.close(fd)  # its holder removed it before it let go


def _is_at(fd: int, path: str) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def check_in_place(fd: int, path: str) -> None:
    """Raise FileNotFoundError where an open file is no longer at its path: what goes into it is lost."""
    if not _is_at(fd, path):
        raise FileNotFoundError(2, "the file was removed or replaced while it was written", path)
