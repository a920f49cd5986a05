"""Runs of a job as a user meets them, on the fake runner: signals, full disks, streams, shards."""

import errno
import functools
import json
import os
import shutil
import signal
import subprocess

import pytest

from jbatch.jobs.options import JobOptions
from jbatch.jobs.request_line import parse_line
from jbatch.jobs.run import JobCommand, run_command
from jbatch.jobs.state import JobState
from tests.helpers.fake_job import (
    JOB,
    Run,
    check_whole,
    error_in,
    num_results,
    refuse,
    run,
    wait_for,
    write_input,
)
from tests.helpers.faults import Faults

SLOW = Faults(step_s=0.02)


def num_tokens_in(result) -> int:
    answer = result["response"]["body"] if result.get("response") else result
    return answer.get("usage", {"completion_tokens": 0})["completion_tokens"]


def test_a_job(place):
    write_input(place, 60)
    ended = run(place, *JOB, "--summary", "figures.json")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("jbatch: 60 requests, 6 of them wrong\njbatch: 54 lines answered (samples: ")
    assert "6 lines with errors (6 invalid_request)" in ended.err and "\x1b" not in ended.err, (
        "a bar, and no terminal"
    )
    results = check_whole(place / "out.jsonl", range(1, 61))
    figures = json.loads((place / "figures.json").read_text())
    assert (figures["completed"], figures["failed"], figures["errors"]) == (54, 6, {"invalid_request": 6})
    assert figures["total_output_tokens"] == sum(num_tokens_in(result) for result in results)
    assert sorted(path.name for path in place.glob("out.jsonl*")) == ["out.jsonl", "out.jsonl.job.json"]


def test_a_job_without_errors_ends_with_0(place):
    write_input(place, 9)
    assert run(place, *JOB, "--summary", "figures.json").code == 0
    before = (place / "figures.json").read_bytes()
    ended = run(place, *JOB, "--summary", "figures.json")
    assert ended.code == 0 and "nothing is left to do" in ended.err
    assert (place / "figures.json").read_bytes() == before, "overwritten"


def test_a_summary_goes_where_a_link_points(place):
    write_input(place, 9)
    (place / "deep").mkdir()
    os.symlink("deep/figures.json", place / "link.json")
    assert run(place, *JOB, "--summary", "link.json").code == 0
    assert os.readlink(place / "link.json") == "deep/figures.json"
    assert json.loads((place / "deep/figures.json").read_text())["completed"] == 9


def test_an_empty_input(place):
    (place / "in.jsonl").write_bytes(b"\n\n")
    assert run(place, *JOB).code == 0 and (place / "out.jsonl").read_bytes() == b""


def test_an_input_of_wrong_lines_needs_no_model(place):
    lines = [{"prompt": "05.", "n": 0}, {"custom_id": "x", "body": {}}, {"prompt": "05.", "top_p": 3}]
    (place / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = {name: str(place / name) for name in ("in.jsonl", "out.jsonl", "figures.json")}
    options = JobOptions(paths["in.jsonl"], paths["out.jsonl"], summary=paths["figures.json"])
    said = []

    def state_of(sha256):
        return JobState(sha256, "1/1", {}, {}, {})

    for expected in ("0 lines answered, 3 lines with errors (3 invalid_request)", "nothing is left to do"):
        parse = functools.partial(parse_line, defaults={})
        command = JobCommand(options, state_of, parse, load=None, say=said.append)  # a call of None raises
        assert run_command(command) == 1 and expected in said[-1]
    results = [json.loads(line) for line in (place / "out.jsonl").read_bytes().splitlines()]
    assert [result["custom_id"] for result in results] == ["line-1", "x", "line-3"]
    assert [result["error"]["line"] for result in results] == [1, 2, 3]
    assert json.loads((place / "figures.json").read_text())["failed"] == 3


def test_answers_around_what_is_no_request(place):
    lines = [
        b'\xef\xbb\xbf{"prompt":"05.","max_tokens":1}',
        b'{"prompt":"05.","max_tokens":NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt":"05.","max_tokens":' + b"9" * 5000 + b"}",
        '{"prompt":"05.\u2028","max_tokens":1}'.encode(),
        b'{"prompt":"\\ud800","max_tokens":1}',
        b'{"messages":[{"role":"robot","content":"05."}],"max_tokens":1}',
        b'{"prompt":[96,97],"max_tokens":1}',
        b'{"prompt":"05.","max_tokens":127}',
        b'{"prompt":"05.","max_tokens":128}',
        b'{"prompt":"05.","max_tokens":0}\r',
        b'{"prompt":"05.","max_tokens":1}',
    ]
    (place / "in.jsonl").write_bytes(b"\n".join(lines))
    ended = run(place, *JOB, "--ordered")
    results = [json.loads(line) for line in (place / "out.jsonl").read_bytes().splitlines()]
    assert ended.code == 1 and [r["custom_id"] for r in results] == [f"line-{n}" for n in range(1, 14)]
    codes = [(error_in(r) or {}).get("code") for r in results]
    json_error, chat, context = "invalid_json", "invalid_request", "context_length"
    assert codes == [
        *(None, json_error, json_error, json_error, json_error, None, json_error, chat),
        *("invalid_request", None, context, None, None),
    ]
    assert results[0]["text"] == results[12]["text"] == "06." and results[11]["finish_reason"] == "length"


def test_a_second_writer_is_refused_at_once(place):
    write_input(place, 40)
    first = Run(place, *JOB, faults=SLOW)
    wait_for(lambda: num_results(place / "out.jsonl") > 2)
    os.symlink("out.jsonl", place / "link.jsonl")
    os.link(place / "out.jsonl", place / "hard.jsonl")
    shutil.copy(place / "out.jsonl.job.json", place / "hard.jsonl.job.json")
    assert f"process {first.pid} is writing to it" in refuse(place, *JOB)
    assert f"process {first.pid} is writing to it" in refuse(place, "-i", "in.jsonl", "-o", "link.jsonl")
    assert "writing to it, by another name" in refuse(place, "-i", "in.jsonl", "-o", "hard.jsonl")
    assert first.wait().code == 1
    check_whole(place / "out.jsonl", range(1, 41))


# Ends that nobody wanted.


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_has_finished(place, signum, code):
    write_input(place, 60)
    job = Run(place, *JOB, "--summary", "figures.json", faults=SLOW)
    wait_for(lambda: num_results(place / "out.jsonl") > 4)
    job.send(signum)
    ended = job.wait()
    assert ended.code == code and " answered (" in ended.err
    there = num_results(place / "out.jsonl")
    figures = json.loads((place / "figures.json").read_text())
    assert figures["completed"] + figures["failed"] == there < 60
    assert run(place, *JOB).code == 1
    check_whole(place / "out.jsonl", range(1, 61))


def test_a_second_interrupt_ends_at_once(place):
    """Also while the device computes: here a step that takes very long."""
    write_input(place, 60)
    job = Run(place, *JOB, faults=Faults(step_s=50))
    wait_for(lambda: "60 requests" in job.err)
    wait_for(lambda: num_results(place / "out.jsonl") == 1)  # a wrong line in the first window
    job.send(signal.SIGINT)
    wait_for(lambda: "once more to end at once" in job.err)
    job.send(signal.SIGINT)
    assert job.wait().code == 130 and job.err.endswith("jbatch: interrupted\n")


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_job_has_begun_ends_at_once(place, signum, code):
    write_input(place, 9)
    job = Run(place, *JOB, faults=Faults(pause_before=("fsync", 50)))
    wait_for(lambda: "9 requests" in job.err)
    job.send(signum)
    assert job.wait() == (code, "", "jbatch: 9 requests\njbatch: interrupted\n")
    assert run(place, *JOB).code == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails(place, code):
    write_input(place, 60)
    ended = run(place, *JOB, "--summary", "figures.json", faults=Faults(fail_write=(code, 12)))
    assert ended.code == 3 and "Traceback" not in ended.err and " answered (" in ended.err
    assert f"{os.strerror(code)}: '{place}/out.jsonl'. out.jsonl holds whole results: the same" in ended.err
    assert num_results(place / "out.jsonl") == 10 and (place / "out.jsonl").read_bytes().endswith(b"\n")
    assert run(place, *JOB).code == 1
    check_whole(place / "out.jsonl", range(1, 61))


def test_a_file_that_may_not_grow(place):
    """The system's own limit, as a quota has it."""
    write_input(place, 60)
    ended = run(place, *JOB, faults=Faults(file_size=2000))
    assert ended.code == 3 and "File too large" in ended.err
    assert run(place, *JOB).code == 1
    check_whole(place / "out.jsonl", range(1, 61))


def test_a_full_disk(place):
    disk = place / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here; a file size limit is tested above")
    try:
        write_input(place, 200)
        ended = run(place, "-i", "in.jsonl", "-o", "disk/out.jsonl")
        assert ended.code == 3 and "No space left on device: " in ended.err
        assert (disk / "out.jsonl").read_bytes().endswith(b"\n") and 5 < num_results(disk / "out.jsonl") < 200
        shutil.copy(disk / "out.jsonl", place), shutil.copy(disk / "out.jsonl.job.json", place)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert run(place, *JOB).code == 1
    check_whole(place / "out.jsonl", range(1, 201))


def test_an_output_that_is_taken_away(place):
    write_input(place, 60)
    (place / "d").mkdir()
    job = Run(place, "-i", "in.jsonl", "-o", "d/out.jsonl", faults=SLOW)
    wait_for(lambda: num_results(place / "d/out.jsonl") > 2)
    shutil.rmtree(place / "d")
    ended = job.wait()
    assert (
        ended.code == 3
        and "changed by someone else while it was written: it was removed or replaced. What is" in ended.err
    )


def test_an_input_that_grows_while_it_is_read(place):
    write_input(place, 60)
    job = Run(place, *JOB, faults=SLOW)
    wait_for(lambda: num_results(place / "out.jsonl") > 2)
    with (place / "in.jsonl").open("a") as file:
        file.write('{"prompt":"05."}\n')
    ended = job.wait()
    assert ended.code == 3 and "the input changed while the job ran" in ended.err


def test_what_comes_before_a_failure_is_said_and_the_summary_written_later(place):
    """Results and summary on one full disk: what stopped the job is the last word."""
    write_input(place, 60)
    ended = run(place, *JOB, "--summary", "figures.json", faults=Faults(file_size=1000))
    assert ended.code == 3 and "File too large: " in ended.err.splitlines()[-1]
    assert "out.jsonl'. out.jsonl holds whole results" in ended.err.splitlines()[-1]
    assert not (place / "figures.json").exists()


@pytest.mark.parametrize("where", ["while it is loaded", "in a step"])
def test_an_error_that_nobody_foresaw(place, where):
    """Exit code 3, and never 1, which says that some results are errors."""
    write_input(place, 9)
    faults = Faults(fail_at_step=2) if where == "in a step" else Faults(fail_at_load=True)
    ended = run(place, *JOB, faults=faults)
    last = ended.err.splitlines()[-1]
    (path,) = place.glob("jbatch-traceback-*.txt")
    assert ended.code == 3 and "Traceback" not in ended.err and last.endswith(f"ts traceback is in {path}")
    assert "RuntimeError: INTERNAL: the device is on fire" in path.read_text()
    assert "unexpected" in last or "a step failed: RuntimeError" in last
    assert run(place, *JOB).code == 0 and not (place / "out.jsonl.lock").exists()


@pytest.mark.parametrize("step", [1, 2, 9, 20])
def test_a_device_that_fails(place, step):
    write_input(place, 60)
    ended = run(place, *JOB, faults=Faults(fail_at_step=step))
    assert ended.code == 3 and "Traceback" not in ended.err
    assert "a step failed: RuntimeError: INTERNAL: the device is on fire. out.jsonl holds whole" in ended.err
    for result in map(json.loads, (place / "out.jsonl").read_bytes().splitlines()):
        assert "step failed" not in str(result), "what was running is no error: it runs again"
    assert run(place, *JOB).code == 1
    check_whole(place / "out.jsonl", range(1, 61))


# Streams and shards.


def test_standard_input_and_output(place):
    data = write_input(place, 30).read_bytes()
    ended = run(place, "-i", "-", "-o", "-", stdin=data)
    assert ended.code == 1 and "the output cannot be read back" in ended.err
    (place / "out.jsonl").write_text(ended.out)
    check_whole(place / "out.jsonl", range(1, 31))
    assert not list(place.glob("-*")), "a file that is called -"


def test_standard_input_goes_on_when_the_same_lines_come(place):
    data = write_input(place, 30).read_bytes()
    assert run(place, "-i", "-", "-o", "out.jsonl", stdin=data, faults=Faults(kill_at_step=6)).code == -9
    assert "another input" in refuse(place, "-i", "-", "-o", "out.jsonl", stdin=data + b"\n")
    assert run(place, "-i", "-", "-o", "out.jsonl", stdin=data).code == 1
    check_whole(place / "out.jsonl", range(1, 31))


def test_shards_make_up_the_whole(place):
    write_input(place, 50)
    for number in (1, 2, 3):
        shard = run(place, "-i", "in.jsonl", "-o", f"{number}.jsonl", "--shard", f"{number}/3")
        assert f"(shard {number}/3 of 50)" in shard.err
        check_whole(place / f"{number}.jsonl", range(number, 51, 3))


def test_ordered_with_blank_lines_and_wrong_ones(place):
    lines = write_input(place, 30).read_text().replace("\n", "\n\n")
    (place / "in.jsonl").write_text("\n" + lines)
    assert run(place, *JOB, "--ordered").code == 1
    errors = [error_in(json.loads(line)) for line in (place / "out.jsonl").read_bytes().splitlines()[9::10]]
    assert [error["line"] for error in errors] == [20, 40, 60]
