"""The trace of a job."""

from unittest import mock

from jbatch.sim.trace_file import read_trace
from jbatch.sim.trace_replay import repeat
from tests.helpers.fake_job import JOB, run_here, write_input


def test_a_job_can_be_repeated_from_its_trace(place):
    write_input(place, 30)
    ended = run_here(place, *JOB, "--trace", "trace.jsonl")
    assert ended.code == 1, ended.err
    done = repeat(read_trace(place / "trace.jsonl"))
    assert done.differs is None and done.plans > 10


def test_a_disk_that_is_full_ends_the_trace_and_not_the_job(place):
    write_input(place, 9)
    full = OSError(28, "No space left on device")
    with mock.patch("jbatch.engine.trace.to_line", side_effect=full):
        ended = run_here(place, *JOB, "--trace", "trace.jsonl")
    assert ended.code == 0
    assert "trace.jsonl is not whole: No space left" in ended.err


def test_a_folder_that_is_not_there_is_refused(place):
    write_input(place, 3)
    ended = run_here(place, *JOB, "--trace", "gone/trace.jsonl")
    assert ended.code == 2 and "gone/trace.jsonl" in ended.err
