"""Standard streams that a shell closed, or that cannot take what is written."""

import os
import subprocess
import sys

import pytest

PRELUDE = (
    "import os, sys; "
    "from jbatch.cli.streams import flush_stderr, flush_stdout, hold_streams; hold_streams(); "
)


def run(code: str, redirect: str) -> subprocess.CompletedProcess:
    """A Python program behind a redirection of the shell's."""
    words = ["sh", "-c", f'"$0" -c "$1" {redirect}', sys.executable, PRELUDE + code]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(words, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_no_file_takes_the_place_of_a_closed_stream(fd, tmp_path):
    code = f"fd = os.open({str(tmp_path / 'out')!r}, os.O_RDWR | os.O_CREAT); sys.exit(fd)"
    assert run(code, f"{fd}>&-").returncode == 3


def test_what_is_closed_can_neither_be_read_nor_written():
    assert run("os.read(0, 1)", "<&-").stderr.endswith("OSError: [Errno 9] Bad file descriptor\n")
    assert run("os.write(1, b'x')", ">&-").stderr.endswith("OSError: [Errno 9] Bad file descriptor\n")
    assert run("os.write(2, b'x')", "2>&-").returncode == 0, "nobody hears it"


@pytest.mark.parametrize("redirect, why", [(">&-", "Bad file descriptor"), (">/dev/full", "No space left")])
def test_what_standard_output_cannot_take_is_said(redirect, why):
    ended = run("print('x'); sys.exit(flush_stdout())", redirect)
    assert ended.returncode == 1 and ended.stderr.startswith(why), "a text is an exit code of 1"
    assert ended.stderr.endswith(": 'standard output'\n") and ended.stderr.count("\n") == 1


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-"])
def test_what_standard_error_cannot_take_changes_no_exit_code(redirect):
    code = "from jbatch.cli.say import say; say('x'); flush_stderr(); sys.exit(3)"
    assert run(code, redirect).returncode == 3


def test_streams_that_are_there_stay():
    ended = run("print('x'); sys.exit(flush_stdout())", "")
    assert (ended.returncode, ended.stdout) == (0, "x\n")
