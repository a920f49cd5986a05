"""What nobody foresaw: one line for the user, and the traceback in a file."""

from __future__ import annotations

import os
import tempfile
import traceback
from contextlib import suppress

MAX_CHARS = 300  # of an error, in a line


def describe_unforeseen(error: BaseException) -> str:
    """An error that is a fault of jbatch, in one line, and where its traceback is."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    short = text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}..."
    return f"unexpected {short}. {keep_traceback(error)}"


def keep_traceback(error: BaseException) -> str:
    """Write the traceback of an error to a new file; says which, or, where none can be written, the place."""
    text = "".join(traceback.format_exception(error))
    path = None
    try:
        fd, path = tempfile.mkstemp(prefix="jbatch-traceback-", suffix=".txt")
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as reason:
        if path is not None:
            with suppress(OSError):
                os.unlink(path)
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
        return f"It comes from {place}; its traceback cannot be written: {reason.strerror}"
    return f"Its traceback is in {path}"
