"""Errors that nobody foresaw: one line, and a file."""

import errno
import re
import tempfile
from pathlib import Path

import pytest

from jbatch.tracebacks import MAX_CHARS, describe_unforeseen


def an_error(text="page\n 7"):
    try:
        raise KeyError(text)
    except KeyError as error:
        return error


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_one_line_names_the_file_with_the_traceback(folder):
    line = describe_unforeseen(an_error())
    (path,) = folder.iterdir()
    assert line == rf"unexpected KeyError: 'page\n 7'. Its traceback is in {path}"
    assert re.search(r"Traceback .*test_tracebacks\.py.*an_error.*KeyError", path.read_text(), re.DOTALL)
    assert path.stat().st_mode & 0o077 == 0, "prompts may be in it"


def test_a_long_error_is_cut():
    line = describe_unforeseen(an_error("x" * 9999))
    assert len(line) < MAX_CHARS + 200 and "xxx..." in line


class Silent(Exception):
    def __str__(self):
        raise ValueError


def test_an_error_that_cannot_be_shown(folder):
    assert "Silent" in describe_unforeseen(Silent())


@pytest.mark.parametrize("fails", ["mkstemp", "write"])
def test_without_a_file_the_place_is_named(folder, monkeypatch, fails):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*(tempfile, "mkstemp") if fails == "mkstemp" else ("os.fdopen",), full)
    line = describe_unforeseen(an_error())
    place = re.escape(str(Path(__file__)))
    assert re.search(rf"It comes from {place}:\d+; its traceback cannot be written: No space left", line)
    assert "\n" not in line and list(folder.iterdir()) == []
