"""The output file: whole results, whatever happens."""

import errno
import os

import pytest

from jbatch.jobs.output import BLOCK, SYNC_EVERY_S, OutputFile, OutputStream, remove_torn


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
        (b"a\nb", b"a\n"),
        (b"torn", b""),
        (b"a\n\0\0\0", b"a\n"),
        (b"a\n" + b"b" * (2 * BLOCK + 1), b"a\n"),
        (b"a" * BLOCK + b"\n" + b"b" * (BLOCK - 1), b"a" * BLOCK + b"\n"),
    ],
)
def test_a_torn_end_is_removed(path, content, left):
    with open(path, "wb") as file:
        file.write(content)
    assert remove_torn(path) == len(content) - len(left)
    with open(path, "rb") as file:
        assert file.read() == left


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
    with pytest.raises(FileNotFoundError, match=r"removed or replaced while it was written: .*out.jsonl"):
        output.sync(now=True)


def test_a_reader_who_left(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError, match="Broken pipe: 'standard output'"):
        OutputStream(write, "standard output").write(b"a\n")
