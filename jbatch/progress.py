"""Progress on standard error: a bar on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 10.0  # where standard error is a file or a pipe

Update = Callable[..., None]


@contextmanager
def progress_bar(label: str, total: int | None = None, *, enabled: bool = True) -> Iterator[Update]:
    """Gives `update(done, note)`, which moves the bar to `done` and shows a note behind it.

    Where standard error is no terminal, a line says every ten seconds how far it is, also while nothing is
    updated. What is over before that says nothing.

    Args:
      total: what `done` will be at the end; None where that is not known.
      enabled: False shows nothing.
    """
    if not enabled or sys.stderr is None:
        yield lambda done, note="": None
        return
    with _bar(label, total) if sys.stderr.isatty() else _lines(label, total) as update:
        yield update


@contextmanager
def _bar(label: str, total: int | None) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    count = () if total is None else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, note="")
        yield lambda done, note="": progress.update(task, completed=done, note=note)


@contextmanager
def _lines(label: str, total: int | None) -> Iterator[Update]:
    begin, over = time.monotonic(), threading.Event()
    shown = [0, ""]  # the last update

    def update(done: int, note: str = "") -> None:
        shown[:] = done, note

    def report() -> None:
        while not over.wait(LINE_EVERY_S):
            done, note = shown
            parts = [label if total is None else f"{label} {done}/{total}", note]
            parts.append(f"{time.monotonic() - begin:.0f} s")
            _write(f"jbatch: {', '.join(str(part) for part in parts if part)}\n")

    reporter = threading.Thread(target=report, name="jbatch-progress", daemon=True)
    reporter.start()
    try:
        yield update
    finally:
        over.set()
        reporter.join()


def say(text: str, *, enabled: bool = True) -> None:
    """One line of progress, which stays."""
    if enabled and sys.stderr is not None:
        _write(f"jbatch: {text}\n")


def _write(line: str) -> None:
    """To standard error, of which a reader may be gone: that is no reason to stop."""
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except (OSError, ValueError):
        return
