"""One process writes an output at a time: its lock file, and a lock on the output itself."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from jbatch.errors import ConfigError
from jbatch.jobs.files import NEVER_FOLLOW, is_at, naming

HOLDER = re.compile(rb"(\d{1,10}\n?)?")  # a process id, also one whose writing was cut off
MAX_HOLDER_BYTES = 11
BY_ANOTHER_NAME = "another process is writing to it, by another name of the file"


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of the output `path`: PATH.lock, which goes with this process, however it ends.

    Raises:
      ConfigError: where another process holds it, naming its id; and where a file of that name is not
        jbatch's, which stays as it is; and where its folder is not there.
      OSError: where it cannot be written; then none is left behind.
    """
    lock_path = f"{path}.lock"
    fd = _lock(path, lock_path)
    try:
        yield
    finally:
        _remove(fd, lock_path)
        os.close(fd)


def lock_file(fd: int, path: str, reason: str = BY_ANOTHER_NAME) -> None:
    """Lock an open output itself: it may have another name, whose PATH.lock is another. Goes with `fd`.

    Raises:
      ConfigError: where another process has locked it.
    """
    if not _try_lock(fd):
        raise ConfigError("output", path, reason)


def _lock(path: str, lock_path: str) -> int:
    while True:
        fd = _open(path, lock_path)
        try:
            with naming(lock_path):
                is_held = not _try_lock(fd)
                holder = os.pread(fd, MAX_HOLDER_BYTES + 1, 0)
            if not HOLDER.fullmatch(holder):
                reason = f"{lock_path} is not jbatch's: move it, or name another output"
                raise ConfigError("output", path, reason)
            if is_held:
                pid = holder.decode().strip() or "?"
                raise ConfigError("output", path, f"process {pid} is writing to it")
            if is_at(fd, lock_path):
                _write_holder(fd, lock_path)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its holder removed it before it let go


def _open(path: str, lock_path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | NEVER_FOLLOW
    try:
        fd = os.open(lock_path, flags, 0o644)
    except FileNotFoundError:
        raise ConfigError("output", path, f"there is no folder {os.path.dirname(path) or '.'}") from None
    except OSError:
        if not os.path.islink(lock_path):
            raise
    else:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    raise ConfigError("output", path, f"{lock_path} is a link, or no regular file: move it")


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_holder(fd: int, lock_path: str) -> None:
    try:
        with naming(lock_path):
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
    except OSError:
        _remove(fd, lock_path)
        raise


def _remove(fd: int, lock_path: str) -> None:
    """While it is held: who waited finds another file there (see `_lock`)."""
    with suppress(OSError):  # its directory may have vanished
        if is_at(fd, lock_path):
            os.unlink(lock_path)
