"""Progress: bars on a terminal, lines elsewhere."""

import io
import sys
import time

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


def test_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("working", 3) as update:
        update(2, "12 tokens/s")
    with progress_bar("loading"):
        pass
    shown = terminal.getvalue()
    assert all(words in shown for words in ("working", "2/3", "12 tokens/s", "loading"))
    assert capsys.readouterr().out == ""


def test_lines_in_a_file(often, monkeypatch, capsys):
    """Also while nothing is updated; none after the end."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("compiling", 33) as update:
        wait_for(lambda: stream.getvalue().count("\n") >= 2)
        update(4, "the last one was slow")
        wait_for(lambda: "4/33" in stream.getvalue())
    lines = stream.getvalue().splitlines()
    assert lines[0] == "jbatch: compiling 0/33, 0 s"
    assert lines[-1] == "jbatch: compiling 4/33, the last one was slow, 0 s"
    time.sleep(0.05)
    assert stream.getvalue().splitlines() == lines and capsys.readouterr().out == ""


def test_lines_without_a_total(often, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("loading weights"):
        wait_for(stream.getvalue)
    assert stream.getvalue().startswith("jbatch: loading weights, 0 s\n")


def test_at_most_one_line_in_ten_seconds():
    assert LINE_EVERY_S == 10


@pytest.mark.parametrize("stream", [None, Broken()])
def test_without_standard_error(stream, often, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("working", 3) as update:
        update(1)
        time.sleep(0.05)
