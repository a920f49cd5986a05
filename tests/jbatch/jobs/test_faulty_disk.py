"""A disk that fails, and people who touch the output, at every call of the system that a job makes. After
each, the same command ends with every id once, or it says what it cannot do."""

import json
import os
from contextlib import nullcontext

import pytest

from tests.helpers.fake_job import Ended, check_whole, run_here, write_input
from tests.helpers.file_faults import (
    EIO,
    ENOSPC,
    OTHERS_LINE,
    Disk,
    Fails,
    Short,
    Touched,
    append,
    empty,
    exchange,
    halve,
)
from tests.helpers.sizes import sized

NUM_LINES = 11  # the tenth is wrong
EVERY_LINE = range(1, NUM_LINES + 1)
COMMAND = ("-i", "in.jsonl", "-o", "out.jsonl", "--summary", "figures.json", "--ordered", "--retry-errors")
WRITTEN = ("out.jsonl", "out.jsonl.job.json", "figures.json")


class Job:
    """A job in a directory, in this process.

    Args:
      resumed: whether it begins with an error, two answers and a part of a third, or with nothing.
    """

    def __init__(self, place, *, resumed: bool):
        self.place = place
        write_input(place, NUM_LINES)
        assert self.run().code == 1
        results = (place / "out.jsonl").read_bytes().splitlines(keepends=True)
        right = [result for result in results if b"invalid_request" not in result]
        (wrong,) = (result for result in results if b"invalid_request" in result)
        self._first = {"out.jsonl": b"".join([wrong, *right[:2], right[2][:20]])} if resumed else {}
        self._first |= {name: (place / name).read_bytes() for name in WRITTEN[1:2] if resumed}

    def begin(self) -> None:
        """Put things back to where it begins."""
        for path in self.place.iterdir():
            if path.is_file() and path.name != "in.jsonl":
                path.unlink()
        for name, content in self._first.items():
            (self.place / name).write_bytes(content)

    def run(self, disk: Disk | None = None) -> Ended:
        with nullcontext() if disk is None else disk.entered():
            return run_here(self.place, *COMMAND)

    def check_end(self, *others: bytes) -> None:
        """The same command ends with every id once, the summary, and nothing left behind."""
        ended = self.run()
        assert ended.code == 1, ended.err
        raw = (self.place / "out.jsonl").read_bytes()
        for line in others:
            assert raw.count(line) == 1
            raw = raw.replace(line, b"")
        (self.place / "whole").write_bytes(raw)
        check_whole(self.place / "whole", EVERY_LINE)
        (self.place / "whole").unlink()
        figures = json.loads((self.place / "figures.json").read_text())
        assert (figures["results_in_output"], figures["errors_in_output"]) == (NUM_LINES, 1)
        assert {path.name for path in self.place.iterdir()} == {"model", "in.jsonl", *WRITTEN}


@pytest.fixture(params=["new", "resumed"])
def job(place, request, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no power is cut here, and disks are slow
    return Job(place, resumed=request.param == "resumed")


def each_call(job, make_fault, step: int = 1):
    """A run for each call that a run without faults makes: its exit code, its last line, the fault."""
    job.begin()
    counting = Disk(job.place)
    job.run(counting)
    for at in range(1, counting.num_calls + 1, step):
        job.begin()
        disk = Disk(job.place, make_fault(), at)
        ended = job.run(disk)
        assert disk.came, "there were fewer calls"
        yield ended.code, ended.err.splitlines()[-1], disk.fault


@pytest.mark.parametrize("code", [ENOSPC, EIO], ids=["full", "broken"])
def test_a_disk_that_fails_at_every_call(job, code):
    codes = []
    for ended, last, _ in each_call(job, lambda: Fails(code), step=sized(2, 1)):
        codes.append(ended)
        assert ended in (1, 3), last
        if ended == 3:
            assert os.strerror(code) in last and f"{job.place}" in last, "which file?"
        job.check_end()
    assert 3 in codes and codes.count(1) < len(codes) / 4


def test_writes_that_do_a_part_at_every_call(job):
    for ended, last, _ in each_call(job, Short, step=sized(9, 1)):
        assert ended == 1, last
        job.check_end()


@pytest.mark.parametrize("touch", [append, halve, empty, exchange])
def test_an_output_that_is_touched_at_every_call(job, touch):
    """Where half a result of the job's and a whole line of somebody else's have become one line, as both were
    written at one moment, the next run says which line that is; and what was written before the job had begun
    is no output of this job."""
    output = job.place / "out.jsonl"
    codes, refused = [], 0
    for ended, last, fault in each_call(job, lambda: Touched(touch, output), step=sized(4, 1)):
        codes.append(ended)
        cannot = why_not(output)
        assert ended in (1, 3) or (ended == 2 and cannot), last
        if ended == 3:
            assert "out.jsonl was changed by someone else while it was written" in last
        if cannot is None:
            job.check_end(*([OTHERS_LINE] if touch is append and fault.stays else []))
        else:
            again = job.run()
            assert again.code == 2 and cannot in again.err
            refused += 1
    assert 3 in codes and refused < len(codes) / 2


def why_not(output) -> str | None:
    """Why no job can go on with an output: a whole line that is none of anybody's, or no state."""
    lines = output.read_bytes().split(b"\n")[:-1] if output.exists() else []
    if lines and not output.with_name("out.jsonl.job.json").exists():
        return "holds results, and out.jsonl.job.json does not say of what job"
    for line_no, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError:
            return f"line {line_no} is no result with a custom_id"
    return None
