"""Files that a command will write at its end: claimed before any work, and never overwritten."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jbatch.errors import ConfigError


def claim_file(path: Path) -> None:
    """Create a results file, empty, before any work. Raises ConfigError where it exists."""
    with _refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("x").close()


@contextlib.contextmanager
def claimed(file: Path | None = None, folder: Path | None = None) -> Iterator[None]:
    """Create a results file or folder before any work; what is still empty when the work ends, as it does
    after an error or Ctrl-C, is removed. Raises ConfigError where it exists."""
    if folder is not None:
        with _refusing(folder):
            folder.mkdir(parents=True)
    if file is not None:
        claim_file(file)

    def remove_empty() -> None:
        if file is not None and file.exists() and not file.stat().st_size:
            file.unlink(missing_ok=True)
        if folder is not None and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()

    try:
        with _before_interrupt(remove_empty):
            yield
    finally:
        remove_empty()


@contextlib.contextmanager
def _before_interrupt(do: Callable[[], None]) -> Iterator[None]:
    """On Ctrl-C, have this done first: what follows may end the process without any `finally`."""
    then: Any = signal.getsignal(signal.SIGINT)
    if not callable(then) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(*args: Any) -> None:
        do()
        then(*args)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, then)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise ConfigError("output", str(path), "exists; results are never overwritten") from None
