"""Progress: bars on a terminal and in a notebook, lines of a logger elsewhere."""

import io
import logging
import sys
import time
import types

import pytest

from jbatch import progress
from jbatch.progress import progress_bar

LINE_EVERY_S = progress.LINE_EVERY_S  # as it is outside of the tests


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture
def often(monkeypatch):
    """A line every few milliseconds."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)


@pytest.fixture(autouse=True)
def no_logging(monkeypatch):
    """As where nobody has set it up: pytest does."""
    monkeypatch.setattr(progress, "LOGGER", logging.Logger("jbatch"))


def wait_for(condition, most_s=10.0):
    end = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_silent_where_nobody_wants_it(stream, often, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("working", 3, enabled=False) as update:
        update(1)
        time.sleep(0.05)
        update(3, "done")
    assert stream.getvalue() == ""
    assert capsys.readouterr().out == ""


def test_what_is_soon_over_says_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("working", 3) as update:
        update(1)
        update(3, "done")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_a_bar_that_vanishes(columns, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress_bar("generating", 12345, "requests") as update:
        update(9876, "12,345 tokens/s, 11-13 min left")
    with progress_bar("loading"):
        pass
    shown = terminal.getvalue()
    parts = (
        "generating",
        "━",
        "9,876 of 12,345 requests, 12,345 tokens/s, 11-13 min left",
        "loading",
        "0:00:00",
    )
    assert all(part in shown for part in parts) and "…" not in shown
    assert shown.endswith("\x1b[2K"), "the line is empty again"
    assert capsys.readouterr().out == ""


def test_in_a_notebook_rich_draws_if_it_can(often, monkeypatch):
    """With ipywidgets; without them there are lines."""
    stream, found = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: found[0])
    found[:] = [object()]
    assert progress._has_bars()
    found[:] = [None]
    with progress_bar("compiling", 33):
        wait_for(lambda: stream.getvalue().startswith("jbatch: compiling 0 of 33, 0 s\n"))


def test_in_a_notebook_a_bar_leaves_no_empty_text(monkeypatch):
    """Its widget is closed, and no other output follows it."""
    shown, within = [], []

    class Output:
        def __enter__(self):
            within.append(self)

        def __exit__(self, *_):
            within.pop()

        def clear_output(self, wait):
            assert wait

        def close(self):
            shown.remove(self)

    ipython, widgets = types.ModuleType("IPython.display"), types.ModuleType("ipywidgets")
    ipython.display, widgets.Output = lambda each: within or shown.append(each), Output
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with progress._bar("compiling", 33, "") as update:
        update(1)
        assert [type(each) for each in shown] == [Output]
    assert shown == []


def test_lines_in_a_file(often, monkeypatch, capsys):
    """Also while nothing is updated; none after the end."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("compiling", 3300) as update:
        wait_for(lambda: stream.getvalue().count("\n") >= 2)
        update(1400, "the last one was slow")
        wait_for(lambda: "1,400 of 3,300" in stream.getvalue())
    lines = stream.getvalue().splitlines()
    assert lines[0] == "jbatch: compiling 0 of 3,300, 0 s"
    assert lines[-1] == "jbatch: compiling 1,400 of 3,300, the last one was slow"
    time.sleep(0.05)
    assert stream.getvalue().splitlines() == lines and capsys.readouterr().out == ""


def test_lines_without_a_total(often, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("loading weights"):
        wait_for(stream.getvalue)
    assert stream.getvalue().startswith("jbatch: loading weights, 0 s\n")


def test_lines_go_where_the_users_logging_goes(often, monkeypatch, caplog):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LOGGER", logging.getLogger("jbatch"))
    with progress_bar("generating", 300, "requests") as update:
        update(120, "1,234 tokens/s, 3-5 min left")
        time.sleep(0.05)
    assert not caplog.records, "logging's own level is WARNING"
    with caplog.at_level(logging.INFO), progress_bar("generating", 300, "requests") as update:
        update(120, "1,234 tokens/s, 3-5 min left")
        wait_for(lambda: caplog.records)
    line = "generating 120 of 300 requests, 1,234 tokens/s, 3-5 min left"
    assert ("jbatch", logging.INFO, line) in caplog.record_tuples
    assert stream.getvalue() == ""


def test_a_higher_level_silences(often, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress.LOGGER, "level", logging.WARNING)
    with progress_bar("working", 3):
        time.sleep(0.05)
    assert stream.getvalue() == ""


def test_at_most_one_line_in_ten_seconds():
    assert LINE_EVERY_S == 10


@pytest.mark.parametrize("stream", [None, Broken()])
def test_without_standard_error(stream, often, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("working", 3) as update:
        update(1)
        time.sleep(0.05)
