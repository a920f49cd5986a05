"""Watching what reads a model directory: its errors, its memory, and whatever it touches outside."""

from __future__ import annotations

import functools
import os
import re
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jbatch.errors import JBatchError
from weights.errors import WeightsError

MAX_GROWTH = 2**30  # bytes of resident memory above the start


@contextmanager
def model_dir() -> Iterator[Path]:
    """A directory for one input, in memory where the system has a place for it."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="jbatch-fuzz-", dir=parent) as name:
        yield Path(name).resolve()


def check_loading(load: Callable[[], None], folder: Path) -> None:
    """`load` ends, or raises an error of jbatch of one line that names a file or a field; it touches nothing
    but `folder`, and takes no memory to speak of."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with warnings.catch_warnings(), watch().on(folder):
            warnings.simplefilter("ignore")
            load()
    except (JBatchError, WeightsError) as error:
        check_message(str(error), folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MAX_GROWTH, f"{grown} bytes of memory"


def check_message(message: str, folder: Path) -> None:
    """One line of a readable length, which names a file, a field (name=value) or a tensor."""
    assert len(message.splitlines()) == 1 and len(message) < 3000, repr(message[:3000])
    names = [*(path.name for path in folder.iterdir()), str(folder), "tensor "]
    assert re.match(r"[^=]{1,80}=", message) or any(name in message for name in names), message


class Watch:
    """What an audit hook sees (it can never be removed) while it is on: any file outside of a directory, any
    import, any network. Raised where it happens, as a BaseException that no handler takes for its own."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        sys.addaudithook(self._hook)

    @contextmanager
    def on(self, folder: Path | None) -> Iterator[None]:
        """None: not on."""
        before, self._folder = self._folder, folder
        try:
            yield
        finally:
            self._folder = before

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self._folder is None:
            return
        if event in ("import", "exec", "compile", "os.system", "subprocess.Popen") or event.startswith(
            "socket."
        ):
            self._refuse(event, args)
        if event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], str | bytes | os.PathLike):
            path = Path(os.fsdecode(args[0]))
            inside = path.resolve().is_relative_to(self._folder)
            if not inside:
                self._refuse(event, args)

    def _refuse(self, event: str, args: tuple[Any, ...]) -> None:
        self._folder = None
        raise Escape(f"{event} {args[:1]}")


class Escape(BaseException):
    """Reading a model directory went outside of it."""


@functools.cache
def watch() -> Watch:
    return Watch()
