"""Files that are there whole or not at all, and locks."""

import os
import subprocess
import sys

import pytest

from jbatch.errors import ConfigError
from jbatch.jobs.files import locked, replacing


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(str(path)) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_a_file_stays_where_its_successor_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(str(path)) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_second_writer_is_refused(tmp_path):
    path = str(tmp_path / "out")
    with locked(path):
        with (
            pytest.raises(ConfigError, match=f"output='{path}': process {os.getpid()} is writing to it"),
            locked(path),
        ):
            pass
        with locked(f"{path}2"):
            pass
    with locked(path):
        pass
    assert os.listdir(tmp_path) == []


HOLD = """
import sys
from jbatch.jobs.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_goes_with_its_process(tmp_path):
    path = str(tmp_path / "out")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"process {holder.pid} is writing to it"), locked(path):
        pass
    holder.kill()
    holder.communicate()
    assert os.path.exists(f"{path}.lock")
    with locked(path):
        pass


def test_a_lock_file_that_was_removed_before_it_could_be_held(tmp_path, monkeypatch):
    """Its holder removes it and lets go just after another process opened it: that one takes a new file."""
    import fcntl

    path, real = str(tmp_path / "out"), fcntl.flock
    removed = []

    def flock(fd, flags):
        if not removed:
            removed.append(os.unlink(f"{path}.lock"))
        real(fd, flags)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(path), pytest.raises(ConfigError, match="is writing to it"), locked(path):
        pass
