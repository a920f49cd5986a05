"""Progress: a bar on a terminal and in a notebook, which vanishes at its end; elsewhere a line now and then.

Lines are the logger's called "jbatch", level INFO. Where nobody has set up logging they go to standard error,
as warnings do by Python's own last resort.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 10.0  # where there is neither a terminal nor a notebook
BAR_CHARS = 12
LOGGER = logging.getLogger("jbatch")

Update = Callable[..., None]


@contextmanager
def progress_bar(
    label: str, total: int | None = None, unit: str = "", *, enabled: bool = True
) -> Iterator[Update]:
    """Gives `update(done, note)`, which moves the bar to `done` and shows a note behind it.

    Without a bar, a line says every ten seconds how far it is, also while nothing is updated. What is over
    before that says nothing.

    Args:
      total: what `done` will be at the end; None where that is not known.
      unit: what is counted, in the plural.
      enabled: False shows nothing.
    """
    if not enabled:
        yield lambda done, note="": None
        return
    with _bar(label, total, unit) if _has_bars() else _lines(label, total, unit) as update:
        yield update


def _has_bars() -> bool:
    """Whether rich can draw a bar: on a terminal; in a notebook, where it needs ipywidgets."""
    if "ipykernel" in sys.modules:
        from rich.console import Console

        if Console(stderr=True).is_jupyter:
            return importlib.util.find_spec("ipywidgets") is not None
    return sys.stderr is not None and sys.stderr.isatty()


def _count(done: int, total: int, unit: str) -> str:
    return f"{done:,} of {total:,}{unit and f' {unit}'}"


@contextmanager
def _bar(label: str, total: int | None, unit: str) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    time_column = () if unit else (TimeElapsedColumn(),)  # of what has a unit, a note says how long
    columns = (TextColumn("{task.description}"), BarColumn(BAR_CHARS), TextColumn("{task.fields[said]}"))
    console = Console(stderr=True)
    with Progress(*columns, *time_column, console=console, transient=True) as progress:

        def said(done: int, note: str = "") -> str:
            parts = ("" if total is None else _count(done, total, unit), note)
            return ", ".join(part for part in parts if part)

        task = progress.add_task(label, total=total, said=said(0))
        try:
            yield lambda done, note="": progress.update(task, completed=done, said=said(done, note))
        finally:  # in a notebook, rich would show an empty text when it ends
            console.quiet = console.is_jupyter


@contextmanager
def _lines(label: str, total: int | None, unit: str) -> Iterator[Update]:
    begin, over = time.monotonic(), threading.Event()
    shown = (0, "")

    def update(done: int, note: str = "") -> None:
        nonlocal shown
        shown = done, note

    def report() -> None:
        while not over.wait(LINE_EVERY_S):
            done, note = shown
            count = "" if total is None else f" {_count(done, total, unit)}"
            say(f"{label}{count}, {note or f'{time.monotonic() - begin:.0f} s'}")

    reporter = threading.Thread(target=report, name="jbatch-progress", daemon=True)
    reporter.start()
    try:
        yield update
    finally:
        over.set()
        reporter.join()


def say(text: str, *, enabled: bool = True) -> None:
    """One line of progress, which stays."""
    if not enabled:
        return
    if LOGGER.hasHandlers():
        LOGGER.info("%s", text)
    elif LOGGER.level <= logging.INFO and sys.stderr is not None:
        try:
            sys.stderr.write(f"jbatch: {text}\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # a reader may be gone: that is no reason to stop
            return
