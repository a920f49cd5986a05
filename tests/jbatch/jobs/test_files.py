"""Files that are there whole or not at all, and nothing of others in their way."""

import errno
import os
import stat

import pytest

from jbatch.jobs.files import check_replaceable, naming, read_own, remove_leftovers, replacing


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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o664])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    with replacing(str(path)) as file:
        (temporary,) = (p for p in tmp_path.iterdir() if p != path)
        assert stat.S_IMODE(temporary.stat().st_mode) == mode
        file.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new"


def test_a_new_file_has_the_mode_that_the_user_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(str(tmp_path / "file")):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_file_that_is_replaced_keeps_its_owner_and_group(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    os.chown(path, 1234, 2345)
    with replacing(str(path)) as file:
        file.write(b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_an_owner_that_cannot_be_kept_is_said(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    status = os.lstat(path)
    other = os.stat_result([*status[:4], status.st_uid + 1, *status[5:]])
    monkeypatch.setattr(os, "lstat", lambda path: other)

    def refuse(*_):
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(PermissionError, match=f"Operation not permitted: '{path}'"), replacing(str(path)):
        raise AssertionError("not reached")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["link", "dangling", "directory", "pipe"])
def test_what_is_no_file_is_neither_replaced_nor_read(tmp_path, name):
    (tmp_path / "thesis").write_text("precious")
    os.symlink("thesis", tmp_path / "link")
    os.symlink("none", tmp_path / "dangling")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    path = str(tmp_path / name)
    for act in (lambda: replacing(path).__enter__(), lambda: read_own(path), lambda: check_replaceable(path)):
        with pytest.raises(OSError, match=f"is a link, or no regular file, and stays as it is: '{path}'"):
            act()
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "thesis").read_text() == "precious"


def test_links_in_the_place_of_a_temporary_file(tmp_path):
    """Its name cannot be known, and what is there is never opened."""
    (tmp_path / "thesis").write_text("precious")
    os.symlink("thesis", tmp_path / "file.jbatch-tmp")
    with replacing(str(tmp_path / "file")) as file:
        file.write(b"new")
    assert (tmp_path / "thesis").read_text() == "precious"


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    kept = ["out", "out.job.json", "out.jbatch-tmp", "out.0123456.jbatch-tmp", "other.01234567.jbatch-tmp"]
    gone = ["out.01234567.jbatch-tmp", "out.job.json.89abcdef.jbatch-tmp"]
    for name in (*kept, *gone):
        (tmp_path / name).write_text("x")
    remove_leftovers(str(tmp_path / "out"), str(tmp_path / "out.job.json"))
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_disk_that_fails_is_an_error_with_the_file_s_name(tmp_path, monkeypatch, name):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    def open_full(fd, mode):
        return open("/dev/full", mode)

    function = ("fdopen", open_full) if name == "write" else (name, fail)
    monkeypatch.setattr(os, *function)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"), replacing(str(path)) as file:
        file.write(b"new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_whether_a_file_can_be_replaced(tmp_path, monkeypatch):
    check_replaceable(str(tmp_path / "file"))
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/no/file'"):
        check_replaceable(str(tmp_path / "no" / "file"))
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # of root, too
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/file'"):
        check_replaceable(str(tmp_path / "file"))
    assert os.listdir(tmp_path) == ["file"]


def test_errors_of_the_system_get_a_name_where_they_have_none():
    with pytest.raises(OSError, match="Input/output error: 'x'"), naming("x"):
        raise OSError(errno.EIO, "no")
    with pytest.raises(OSError, match="'y'"), naming("x"):
        raise OSError(errno.EIO, "no", "y")
