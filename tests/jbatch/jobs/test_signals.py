"""An end at once, whatever else is wrong. What signals do to a job is in test_run.py."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("redirect, said", [("", "jbatch: interrupted\n"), ("2>/dev/full", ""), ("2>&-", "")])
def test_an_end_at_once(redirect, said):
    """Also where nobody can be told."""
    program = "from jbatch.jobs.signals import exit_at_once; exit_at_once(130); print('not reached')"
    words = ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, program]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", said)
