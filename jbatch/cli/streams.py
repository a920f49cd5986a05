"""Standard input and output that a shell closed (`>&-`), or that cannot take what is written to them."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from jbatch.errors import describe_os_error


def hold_streams() -> None:
    """Put something in the place of a standard stream that is closed, or the next file that is opened would
    be there and get what libraries print. To read from it, or to write to standard output, is an error."""
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


def flush_stdout() -> str | None:
    """Write what is buffered; why that cannot be done, if it cannot. Then the rest is given up, or Python
    would try again at its end, and choose an exit code of its own."""
    return _flush(sys.stdout, 1, "standard output")


def flush_stderr() -> None:
    """The same for standard error, whose reader may be gone, or its disk full: nobody else is to be told."""
    _flush(sys.stderr, 2, "standard error")


def _flush(stream: TextIO | None, fd: int, name: str) -> str | None:
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        error.filename = name
        return describe_os_error(error)
    return None
