"""One writer of an output at a time, and nothing of the user's in the lock's way."""

import errno
import os
import subprocess
import sys

import pytest

from jbatch.errors import ConfigError
from jbatch.jobs.lock import locked


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
from jbatch.jobs.lock import locked
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


@pytest.mark.parametrize("content", ["my notes\n", "12 13\n", "1" * 20, "4711\nx", "{}"])
def test_a_file_of_the_user_s_is_no_lock(tmp_path, content):
    (tmp_path / "out.lock").write_text(content)
    with (
        pytest.raises(ConfigError, match=r"out\.lock is not jbatch's: move it"),
        locked(str(tmp_path / "out")),
    ):
        pass
    assert (tmp_path / "out.lock").read_text() == content


@pytest.mark.parametrize("content", ["", "4711", "4711\n"])
def test_a_lock_that_a_kill_left_is_taken(tmp_path, content):
    (tmp_path / "out.lock").write_text(content)
    with locked(str(tmp_path / "out")):
        assert (tmp_path / "out.lock").read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "dangling", "directory", "pipe"])
def test_what_is_no_file_is_no_lock(tmp_path, kind):
    (tmp_path / "thesis").write_text("precious")
    lock = tmp_path / "out.lock"
    {
        "link": lambda: os.symlink("thesis", lock),
        "dangling": lambda: os.symlink("none", lock),
        "directory": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
    }[kind]()
    with (
        pytest.raises((ConfigError, IsADirectoryError), match=r"out\.lock"),
        locked(str(tmp_path / "out")),
    ):
        pass
    assert sorted(os.listdir(tmp_path)) == ["out.lock", "thesis"]
    assert (tmp_path / "thesis").read_text() == "precious"


def test_a_lock_that_somebody_replaced_stays(tmp_path):
    with locked(str(tmp_path / "out")):
        (tmp_path / "out.lock").unlink()
        (tmp_path / "out.lock").write_text("my notes")
    assert (tmp_path / "out.lock").read_text() == "my notes"


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    path = str(tmp_path / "out")
    with pytest.raises(OSError, match=rf"No space left on device: '{path}\.lock'"), locked(path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a long path is cut short
    with pytest.raises(ConfigError, match=r"^output='none/out': there is no folder none$"):
        locked("none/out").__enter__()
