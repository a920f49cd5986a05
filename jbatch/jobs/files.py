"""Files that are there whole or not at all; none is written through a link, nor over what others made."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

TEMPORARY = ".jbatch-tmp"
Check = Callable[[], None]
NEVER_FOLLOW = os.O_NOFOLLOW | os.O_NONBLOCK  # neither a link, nor a wait for the other end of a pipe


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Give errors of the system the name of a file, where they have none: those of an open file do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise _named(error, path) from error


def unchecked() -> None:
    """Trust that nobody else writes to a file."""


@contextmanager
def replacing(path: str, check: Check = unchecked, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Write a file that takes `path`'s place at the end, and has its mode, owner and group. Before that, and
    where it fails, nothing changes.

    Args:
      check: called just before the end; raises where somebody else has written to `path`.
      lasting: wait until it would be there after a power cut.

    Raises:
      OSError: naming `path`, also where that is no regular file.
    """
    temporary = f"{path}.{secrets.token_hex(4)}{TEMPORARY}"  # two processes may replace one summary
    try:
        with _new_file(temporary, like=path) as file:
            yield file
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        check()
        os.replace(temporary, path)
        if lasting:
            sync_directory(path)
    except BaseException as error:  # an interrupt included
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            raise _named(error, path) from error
        raise


@contextmanager
def _new_file(path: str, like: str) -> Iterator[BinaryIO]:
    """A file of a new name, with the mode, owner and group of `like`, where that is there. Until it has them,
    nobody else can read it."""
    before = _status(like)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600 if before else 0o666)
    with os.fdopen(fd, "wb") as file:
        if before is not None:
            now = os.fstat(fd)
            if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
                os.fchown(fd, before.st_uid, before.st_gid)
            os.fchmod(fd, stat.S_IMODE(before.st_mode))
        yield file


def check_replaceable(path: str) -> None:
    """Raise OSError, naming it, where `path` cannot be replaced, as far as that can be told without trying.
    A file that may only be read is meant to stay."""
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    for place in (directory,) if _status(path) is None else (directory, path):
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def read_own(path: str) -> bytes | None:
    """What a file holds that jbatch wrote; None where it is not there. Raises OSError, naming it, where it is
    a link, or no file."""
    if _status(path) is None:
        return None
    with naming(path), os.fdopen(os.open(path, os.O_RDONLY | NEVER_FOLLOW), "rb") as file:
        return file.read()


def _status(path: str) -> os.stat_result | None:
    """Of a regular file; None where nothing is there. Raises OSError for anything else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.ELOOP, "is a link, or no regular file, and stays as it is", path)
    return status


def remove_leftovers(*paths: str) -> None:
    """Remove what was written to replace some files of one directory and, after a kill, did not."""
    names = "|".join(re.escape(os.path.basename(path)) for path in paths)
    leftover = re.compile(rf"({names})\.[0-9a-f]{{8}}{re.escape(TEMPORARY)}")
    directory = os.path.dirname(paths[0])
    for name in os.listdir(directory or "."):
        if leftover.fullmatch(name):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))


def sync_directory(path: str) -> None:
    """Make the name of a new file last through a power cut."""
    directory = os.path.dirname(path) or "."
    fd = os.open(directory, os.O_RDONLY)
    try:
        with naming(directory):
            os.fsync(fd)
    finally:
        os.close(fd)


def is_at(fd: int, path: str) -> bool:
    """Whether `path` itself, not what it links to, is the open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _named(error: OSError, path: str) -> OSError:
    """The same error, of the file that a user knows."""
    return OSError(error.errno, os.strerror(error.errno) if error.errno else str(error), path)
