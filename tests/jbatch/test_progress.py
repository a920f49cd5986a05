"""Progress bars."""

import io
import sys

import pytest

from jbatch.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream, enabled", [(io.StringIO(), True), (Terminal(), False)])
def test_silent_where_it_would_be_noise(stream, enabled, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("working", 3, enabled=enabled) as update:
        update(1)
        update(3, "done")
    assert stream.getvalue() == ""
    assert capsys.readouterr().out == ""


def test_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("working", 3) as update:
        update(2, "12 tokens/s")
    assert all(words in terminal.getvalue() for words in ("working", "2/3", "12 tokens/s"))
    assert capsys.readouterr().out == ""


def test_without_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar("working", 3) as update:
        update(1)
