"""What a call leaves for the next one."""

import os
import tarfile

import pytest

from bench.gpu_suite import archive


@pytest.fixture
def work(tmp_path):
    work = tmp_path / "work"
    tuned = work / "cache" / archive.TUNED
    for folder in (tuned, work / "launches", work / "torch" / "fx"):
        folder.mkdir(parents=True)
    (tuned / "fusion.textproto").write_text("tuned")
    (work / "launches" / "step.txt").write_text("kCommandBuffer")
    (work / "target.txtpb").write_text("device")
    (work / "cache" / "small-cache").write_bytes(os.urandom(1000))
    (work / "cache" / "large-cache").write_bytes(os.urandom(3000))
    (work / "torch" / "fx" / "graph").write_bytes(os.urandom(1000))
    return work


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("{}")
    return tmp_path / "out"


def names(out):
    with tarfile.open(out / archive.NAME) as opened:
        return opened.getnames()


def test_what_was_packed_is_there_again(work, out, tmp_path):
    assert archive.pack(work, out) == []
    archive.unpack(out / archive.NAME, tmp_path / "again")
    for file in work.rglob("*"):
        if file.is_file():
            assert (tmp_path / "again" / file.relative_to(work)).read_bytes() == file.read_bytes()
    assert (tmp_path / "again" / "results.json").read_text() == "{}"
    assert [file.name for file in out.iterdir() if file.name != "results.json"] == [archive.NAME]


def test_where_room_is_short_the_most_useful_goes_along(work, out):
    left_out = archive.pack(work, out, max_bytes=5000)
    assert left_out == ["torch/fx/graph"]
    assert names(out)[:4] == [
        "results.json", "target.txtpb", "launches/step.txt", f"cache/{archive.TUNED}/fusion.textproto",
    ]  # fmt: skip
    assert names(out)[4:] == ["cache/large-cache", "cache/small-cache"]
    assert (out / archive.NAME).stat().st_size <= 5000 + 100  # the end of an archive


def test_nothing_lands_outside_the_work_folder(tmp_path):
    evil = tmp_path / "evil.tar.gz"
    with tarfile.open(evil, "w:gz") as opened:
        opened.add(__file__, "../outside")
    with pytest.raises(tarfile.TarError):
        archive.unpack(evil, tmp_path / "work")
    assert not (tmp_path / "outside").exists()


def test_the_archive_of_the_output_folder_comes_first(tmp_path):
    assert archive.find(tmp_path / "out", tmp_path / "results") is None
    for age, name in enumerate(("old", "new")):
        (tmp_path / "results" / name).mkdir(parents=True)
        file = tmp_path / "results" / name / archive.NAME
        file.write_bytes(b"")
        os.utime(file, (age, age))
    assert archive.find(tmp_path / "out", tmp_path / "results").parent.name == "new"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / archive.NAME).write_bytes(b"")
    assert archive.find(tmp_path / "out", tmp_path / "results").parent.name == "out"
