"""The output file: whole results, whatever happens."""

import errno
import fcntl
import os

import pytest

from jbatch.errors import ConfigError, OutputChanged
from jbatch.jobs.output import BLOCK, SYNC_EVERY_S, OutputFile, OutputStream, open_stream


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out.jsonl")


def test_results_are_in_the_file_when_write_returns(path):
    output = OutputFile(path)
    assert [output.write(b"one\n"), output.write(b"two\n")] == [0, 4]
    with open(path, "rb") as file:
        assert file.read() == b"one\ntwo\n"
    output.close()
    assert OutputFile(path).write(b"three\n") == 8


@pytest.mark.parametrize(
    "content, left",
    [
        (b"", b""),
        (b"a\n", b"a\n"),
        (b"a\n{", b"a\n"),
        (b'{"torn', b""),
        (b"a\n\0\0\0", b"a\n"),
        (b'a\n{"' + b"b" * (2 * BLOCK + 1), b"a\n"),
        (b"a" * BLOCK + b'\n{"' + b"b" * (BLOCK - 3), b"a" * BLOCK + b"\n"),
    ],
)
def test_a_torn_end_is_removed(path, content, left):
    with open(path, "wb") as file:
        file.write(content)
    output = OutputFile(path)
    assert output.remove_torn() == len(content) - len(left)
    assert output.write(b"next\n") == len(left)
    with open(path, "rb") as file:
        assert file.read() == left + b"next\n"


@pytest.mark.parametrize("end", [b"note", b"{1", b" {", b"\xff"])
def test_an_end_that_is_no_part_of_a_result_stays(path, end):
    """Somebody wrote a line, and has not ended it."""
    with open(path, "wb") as file:
        file.write(b"a\n" + end)
    with pytest.raises(
        ConfigError, match=f"ends with {len(end)} bytes that are no result and no part of one"
    ):
        OutputFile(path).remove_torn()
    with open(path, "rb") as file:
        assert file.read() == b"a\n" + end


@pytest.mark.parametrize("output_class", [OutputFile, OutputStream])
def test_writes_that_do_a_part_go_on(path, output_class, monkeypatch):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    output = OutputFile(path) if output_class is OutputFile else OutputStream(fd, "name")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    output.write(b"a long result\n")
    with open(path, "rb") as file:
        assert file.read() == b"a long result\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_result_that_fails_halfway_is_taken_back(path, code, monkeypatch):
    output, real = OutputFile(path), os.write
    output.write(b"whole\n")

    def full(fd, data):
        if len(data) < 10:
            raise OSError(code, "no")
        return real(fd, data[:5])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=f"{os.strerror(code)}: .*out.jsonl"):
        output.write(b"torn result\n")
    with open(path, "rb") as file:
        assert file.read() == b"whole\n"


def test_what_is_written_is_synced_every_few_seconds(path, monkeypatch):
    now, synced = [0.0], []
    output = OutputFile(path, clock=lambda: now[0])
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(now[0]))
    for now[0] in (0.1, 2.9, 3.1, 3.2, 6.2, 9.3):
        if now[0] < 5:
            output.write(b"a\n")
        output.sync()
    assert synced == [3.1, 6.2] and SYNC_EVERY_S == 3
    output.sync(now=True)
    assert synced == [3.1, 6.2], "nothing new"


@pytest.mark.parametrize("loss", ["removed", "replaced", "directory"])
def test_a_file_that_vanished_is_noticed(tmp_path, loss):
    directory = tmp_path / "d"
    directory.mkdir()
    path = directory / "out.jsonl"
    output = OutputFile(str(path))
    output.write(b"a\n")
    path.unlink()
    if loss == "directory":
        directory.rmdir()
    if loss == "replaced":
        path.write_bytes(b"b\n")
    with pytest.raises(OutputChanged, match=r"out.jsonl was changed by someone else while .* or replaced"):
        output.sync(now=True)


@pytest.mark.parametrize("how", ["write", "sync"])
@pytest.mark.parametrize(
    "content", [b"", b"mi", b"mine\n" + b"another's\n", b"m" * 999], ids=["emptied", "cut", "longer", "other"]
)
def test_a_file_that_somebody_else_changes_is_noticed_and_left_alone(path, content, how):
    output = OutputFile(path)
    output.write(b"mine\n")
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(content)
    with pytest.raises(OutputChanged, match=f"it has {len(content)} bytes, and should have 5"):
        output.sync(now=True) if how == "sync" else output.write(b"mine, too\n")
    with open(path, "rb") as file:
        assert file.read() == content


def test_what_is_appended_at_the_very_moment_of_a_write_stays(path, monkeypatch):
    """Between the look at the size and the write: the result goes behind it, and the next look finds out."""
    output, real = OutputFile(path), os.write
    output.write(b"mine\n")

    def write(fd, data):
        with open(path, "ab") as file:
            file.write(b"another's\n")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    output.write(b"late\n")
    with pytest.raises(OutputChanged):
        output.sync(now=True)
    with open(path, "rb") as file:
        assert file.read() == b"mine\nanother's\nlate\n"


def test_what_is_taken_back_is_never_another_s(path, monkeypatch):
    """A write fails halfway, and somebody has appended meanwhile."""
    output, real = OutputFile(path), os.write

    def write(fd, data):
        if len(data) < 10:
            with open(path, "ab") as file:
                file.write(b"another's\n")
            raise OSError(errno.ENOSPC, "no")
        return real(fd, data[:5])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        output.write(b"torn result\n")
    with open(path, "rb") as file:
        assert file.read() == b"torn another's\n"


def test_one_file_by_two_names_has_one_writer(path, tmp_path):
    first = OutputFile(path)
    os.link(path, tmp_path / "hard.jsonl")
    with pytest.raises(ConfigError, match="another process is writing to it, by another name"):
        OutputFile(str(tmp_path / "hard.jsonl"))
    first.close()
    OutputFile(str(tmp_path / "hard.jsonl")).close()


def test_an_output_that_becomes_a_link_is_not_followed(path, tmp_path):
    (tmp_path / "thesis").write_text("precious")
    os.symlink(tmp_path / "thesis", path)
    with pytest.raises(OSError, match="symbolic links"):
        OutputFile(path)
    assert (tmp_path / "thesis").read_text() == "precious"


def test_an_output_that_was_replaced_is_opened_again(path, tmp_path):
    output = OutputFile(path)
    output.write(b"old\n")
    (tmp_path / "new").write_bytes(b"n\n")
    os.replace(tmp_path / "new", path)
    output.reopen()
    assert output.write(b"next\n") == 2
    output.sync(now=True)
    with pytest.raises(ConfigError, match="another process is writing"):
        OutputFile(path)


def test_standard_output_that_is_closed_or_may_not_be_written_to(monkeypatch):
    assert open_stream("-").write(b"") == 0

    def closed(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    for flags in (closed, lambda *_: os.O_RDONLY):
        monkeypatch.setattr(fcntl, "fcntl", flags)
        with pytest.raises(ConfigError, match="output_file='-': standard output is closed"):
            open_stream("-")


def test_a_reader_who_left(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError, match="Broken pipe: 'standard output'"):
        OutputStream(write, "standard output").write(b"a\n")
