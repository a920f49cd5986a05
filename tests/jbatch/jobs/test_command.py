"""Jobs as a user meets them, on the fake runner: refusals, signals, full disks, streams."""

import errno
import json
import os
import shutil
import signal
import subprocess

import pytest

from jbatch.jobs.command import JobCommand, run_command
from jbatch.jobs.options import JobOptions
from jbatch.jobs.state import JobState
from tests.helpers import fake_job
from tests.helpers.fake_job import Faults, Run, check_whole, run, wait_for, write_input

JOB = ("-i", "in.jsonl", "-o", "out.jsonl")
SLOW = Faults(step_s=0.02)


@pytest.fixture
def place(tmp_path):
    return fake_job.make_directory(tmp_path)


def num_records(path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def num_tokens_in(record) -> int:
    answer = record["response"]["body"] if record.get("response") else record
    return answer.get("usage", {"completion_tokens": 0})["completion_tokens"]


def test_a_job(place):
    write_input(place, 60)
    ended = run(place, *JOB, "--summary", "figures.json")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("jbatch: 60 requests, 6 of them wrong\njbatch: 54 answered (")
    assert "6 errors (6 invalid_request)" in ended.err and "\x1b" not in ended.err, "a bar, and no terminal"
    records = check_whole(place / "out.jsonl", range(1, 61))
    figures = json.loads((place / "figures.json").read_text())
    assert (figures["completed"], figures["failed"], figures["errors"]) == (54, 6, {"invalid_request": 6})
    assert figures["total_output_tokens"] == sum(num_tokens_in(record) for record in records)
    assert sorted(path.name for path in place.glob("out.jsonl*")) == ["out.jsonl", "out.jsonl.job.json"]


def test_a_job_without_errors_ends_with_0(place):
    write_input(place, 9)
    assert run(place, *JOB, "--summary", "figures.json").code == 0
    for name in ("figures.json", "none.json"):
        ended = run(place, *JOB, "--summary", name)
        assert ended.code == 0 and "nothing is left to do" in ended.err
    assert json.loads((place / "figures.json").read_text())["completed"] == 9, "overwritten"
    assert not (place / "none.json").exists()


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

    for expected in ("0 answered, 3 errors (3 invalid_request)", "nothing is left to do"):
        command = JobCommand(options, state_of, {}, load=None, say=said.append)  # a call of None raises
        assert run_command(command) == 1 and expected in said[-1]
    records = [json.loads(line) for line in (place / "out.jsonl").read_bytes().splitlines()]
    assert [record["custom_id"] for record in records] == ["line-1", "x", "line-3"]
    assert [record["error"]["line"] for record in records] == [1, 2, 3]
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
        b'{"messages":[{"role":"tool","content":"05."}],"max_tokens":1}',
        b'{"prompt":[96,97],"max_tokens":1}',
        b'{"prompt":"05.","max_tokens":127}',
        b'{"prompt":"05.","max_tokens":128}',
        b'{"prompt":"05.","max_tokens":0}\r',
        b'{"prompt":"05.","max_tokens":1}',
    ]
    (place / "in.jsonl").write_bytes(b"\n".join(lines))
    ended = run(place, *JOB, "--ordered")
    records = [json.loads(line) for line in (place / "out.jsonl").read_bytes().splitlines()]
    assert ended.code == 1 and [r["custom_id"] for r in records] == [f"line-{n}" for n in range(1, 14)]
    codes = [(r.get("error") or {}).get("code") for r in records]
    json_error, chat, context = "invalid_json", "invalid_request", "context_length"
    assert codes == [
        *(None, json_error, json_error, json_error, json_error, None, json_error, chat),
        *("invalid_request", None, context, None, None),
    ]
    assert records[0]["text"] == records[12]["text"] == "06." and records[11]["finish_reason"] == "length"


# Refusals: exit code 2 and one line, before anything is written.


def refuse(place, *args, **options) -> str:
    ended = run(place, *args, **options)
    last = ended.err.splitlines()[-1]
    assert (ended.code, ended.out) == (2, "") and "Traceback" not in ended.err
    return last.removeprefix("jbatch: ")


@pytest.mark.parametrize(
    "args, message",
    [
        (("-i", "in.jsonl"), "output_file=None: a job needs both -i and -o"),
        (("-o", "out.jsonl"), "input_file=None: a job needs both -i and -o"),
        ((*JOB, "-p", "x"), "-p takes none of the options of -i"),
        ((), "give prompts (-p), or an input and an output file (-i and -o)"),
        ((*JOB, "--shard", "3/2"), "shard='3/2': must be i/n, with i from 1 to n"),
        ((*JOB, "--max-model-len", "129"), "max_model_len=129: must be at most 128, the model's context"),
        (("-i", "none.jsonl", "-o", "out.jsonl", "--max-model-len", "129"), "max_model_len=129: must be at"),
        ((*JOB, "--temperature", "-1"), "temperature=-1.0: must be a number from 0 to 100"),
        (("-i", "in.jsonl", "-o", "-", "--ordered"), "ordered=True: needs an output file, and -o is none"),
        (("-i", "in.jsonl", "-o", "/dev/null", "--retry-errors"), "retry_errors=True: needs an output file"),
        (("-i", "none.jsonl", "-o", "out.jsonl"), "[Errno 2] No such file or directory: 'none.jsonl'"),
        (("-i", "in.jsonl", "-o", "no/out.jsonl"), "[Errno 2] No such file or directory"),
        (("-i", "model", "-o", "out.jsonl"), "[Errno 21] Is a directory"),
        (("-i", "in.jsonl", "-o", "model"), "[Errno 21] Is a directory"),
        ((*JOB, "--summary", "no/figures.json"), "[Errno 2] No such file or directory: '"),
        ((*JOB, "--summary", "-"), "summary='-': must be a file"),
        ((*JOB, "--summary", "model"), "summary='model': must be a file"),
        ((*JOB, "--summary", "/dev/null"), "summary='/dev/null': must be a file"),
        (("-i", "in.jsonl", "-o", "in.jsonl"), "is the same file as input=in.jsonl"),
        (("-i", "in.jsonl", "-o", "hard.jsonl"), "is the same file as input=in.jsonl"),
        (("-i", "in.jsonl", "-o", "soft.jsonl"), "is the same file as input=in.jsonl"),
        (("-i", "soft.jsonl", "-o", "in.jsonl"), "is the same file as input=soft.jsonl"),
        ((*JOB, "--summary", "in.jsonl"), "is the same file as "),
        ((*JOB, "--summary", "out.jsonl"), "is the same file as "),
        ((*JOB, "--summary", "out.jsonl.job.json"), "is the same file as "),
    ],
)
def test_what_makes_no_sense(place, args, message):
    write_input(place, 3)
    before = (place / "in.jsonl").read_bytes()
    os.link(place / "in.jsonl", place / "hard.jsonl")
    os.symlink("in.jsonl", place / "soft.jsonl")
    assert message in refuse(place, *args)
    assert (place / "in.jsonl").read_bytes() == before and not (place / "out.jsonl").exists()


def test_duplicates_are_refused_before_anything_is_written(place):
    lines = [json.dumps({"prompt": "05.", "custom_id": name}) for name in ("a", "b", "c", "b")]
    (place / "in.jsonl").write_text("\n".join(lines))
    assert refuse(place, *JOB).startswith("custom_id='lines 2 and 4': the same id twice")
    assert not (place / "out.jsonl").exists()


def edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "change, args, message",
    [
        (lambda d: edit(d / "in.jsonl", "request 1", "request I"), (), "another input ("),
        (lambda d: edit(d / "model/config.json", ": 32", ": 64"), (), "model (config.json)"),
        (lambda d: (d / "model/model.safetensors").write_bytes(b"other"), (), "model (model.safetensors)"),
        (lambda d: (d / "model/chat_template.jinja").write_bytes(b"{{}}"), (), "model (chat_template.jinja)"),
        (None, ("--temperature", "0.5"), "another temperature (0.0, now 0.5). "),
        (None, ("--temperature", "0", "--top-p", "0.5"), "another top_p (default, now 0.5). "),
        (None, ("--temperature", "0", "--seed", "7"), "another seed (0, now 7). "),
        (None, ("--temperature", "0", "--max-model-len", "64"), "another max_model_len (default, now 64). "),
        (None, ("--temperature", "0", "--shard", "1/2"), "another shard (1/1, now 1/2). "),
        (lambda d: (d / "out.jsonl.job.json").unlink(), (), "job.json does not say of what job"),
        (lambda d: (d / "out.jsonl.job.json").write_text("{"), (), "job.json does not say of what job"),
    ],
)  # fmt: skip
def test_another_job_does_not_go_on_with_an_output(place, change, args, message):
    write_input(place, 9)
    (place / "model/model.safetensors").write_bytes(b"weights")
    assert run(place, *JOB, "--temperature", "0", faults=Faults(kill_at_step=6)).code == -9
    before = (place / "out.jsonl").read_bytes()
    if change is not None:
        change(place)
    args = args or ("--temperature", "0")
    assert message in refuse(place, *JOB, *args) and (place / "out.jsonl").read_bytes() == before
    ended = run(place, *JOB, *args, "--force")
    assert ended.code == 0 and num_records(place / "out.jsonl") >= 9 // (1 + ("1/2" in args))


def test_lines_without_max_tokens_need_the_same_room(place):
    """Five pages hold less than the context; eight hold it, and more make no difference."""
    lines = [{"prompt": f"{n:02}.", "custom_id": f"request {n}"} for n in range(3, 9)]
    (place / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = run(place, *JOB, "--num-pages", "6", faults=Faults(kill_at_step=30))
    assert ended.code == -9 and num_records(place / "out.jsonl") == 0
    ended = run(place, *JOB, "--num-pages", "5", faults=Faults(kill_at_step=90))
    assert ended.code == -9 and num_records(place / "out.jsonl") > 0
    assert "warning: 6 outputs without max_tokens are cut at 64 tokens" in ended.err
    before = (place / "out.jsonl").read_bytes()
    message = refuse(place, *JOB)
    assert "had room for 64 tokens, prompt included; now the cache and max_model_len have 128" in message
    assert (place / "out.jsonl").read_bytes() == before
    ended = run(place, *JOB, "--force")
    assert ended.code == 0 and "warning: 6" not in ended.err
    (place / "out.jsonl").unlink()
    assert run(place, *JOB, "--num-pages", "9").code == 0
    (place / "out.jsonl").write_bytes(b"".join((place / "out.jsonl").read_bytes().splitlines(True)[:3]))
    assert run(place, *JOB, "--num-pages", "20").code == 0


def test_force_does_not_touch_what_is_no_output(place):
    write_input(place, 9)
    (place / "out.jsonl").write_text("Dear diary,\ntoday I")
    assert "does not say of what job" in refuse(place, *JOB)
    assert "line 1 is no record with a custom_id" in refuse(place, *JOB, "--force", "--retry-errors")
    assert (place / "out.jsonl").read_text() == "Dear diary,\ntoday I"


def test_another_batch_size_goes_on(place):
    write_input(place, 9)
    assert run(place, *JOB, faults=Faults(kill_at_step=3)).code == -9
    assert run(place, *JOB, "--max-num-seqs", "2", "--page-size", "16").code == 0
    check_whole(place / "out.jsonl", range(1, 10))


def test_a_job_without_records_may_change(place):
    """Its first run ended before an answer came: there is nothing to protect."""
    write_input(place, 9)
    assert run(place, *JOB, faults=Faults(kill_at_step=1)).code == -9
    assert (place / "out.jsonl").read_bytes() == b""
    assert run(place, *JOB, "--temperature", "0.5").code == 0


def test_a_second_writer_is_refused_at_once(place):
    write_input(place, 40)
    first = Run(place, *JOB, faults=SLOW)
    wait_for(lambda: num_records(place / "out.jsonl") > 2)
    os.symlink("out.jsonl", place / "link.jsonl")
    assert f"process {first.pid} is writing to it" in refuse(place, *JOB)
    assert f"process {first.pid} is writing to it" in refuse(place, "-i", "in.jsonl", "-o", "link.jsonl")
    assert first.wait().code == 1
    check_whole(place / "out.jsonl", range(1, 41))


# Ends that nobody wanted.


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_has_finished(place, signum, code):
    write_input(place, 60)
    job = Run(place, *JOB, "--summary", "figures.json", faults=SLOW)
    wait_for(lambda: num_records(place / "out.jsonl") > 4)
    job.send(signum)
    ended = job.wait()
    assert ended.code == code and " answered (" in ended.err
    there = num_records(place / "out.jsonl")
    figures = json.loads((place / "figures.json").read_text())
    assert figures["completed"] + figures["failed"] == there < 60
    assert run(place, *JOB).code == 1
    check_whole(place / "out.jsonl", range(1, 61))


def test_a_second_interrupt_ends_at_once(place):
    """Also while the device computes: here a step that takes very long."""
    write_input(place, 60)
    job = Run(place, *JOB, faults=Faults(step_s=50))
    wait_for(lambda: "60 requests" in job.err)
    wait_for(lambda: num_records(place / "out.jsonl") == 1)  # a wrong line in the first window
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
    assert f"{os.strerror(code)}: '{place}/out.jsonl'. out.jsonl holds whole records: the same" in ended.err
    assert num_records(place / "out.jsonl") == 10 and (place / "out.jsonl").read_bytes().endswith(b"\n")
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
        assert (disk / "out.jsonl").read_bytes().endswith(b"\n") and 5 < num_records(disk / "out.jsonl") < 200
        shutil.copy(disk / "out.jsonl", place), shutil.copy(disk / "out.jsonl.job.json", place)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert run(place, *JOB).code == 1
    check_whole(place / "out.jsonl", range(1, 201))


def test_an_output_that_is_taken_away(place):
    write_input(place, 60)
    (place / "d").mkdir()
    job = Run(place, "-i", "in.jsonl", "-o", "d/out.jsonl", faults=SLOW)
    wait_for(lambda: num_records(place / "d/out.jsonl") > 2)
    shutil.rmtree(place / "d")
    ended = job.wait()
    assert ended.code == 3 and "removed or replaced while it was written" in ended.err


def test_an_input_that_grows_while_it_is_read(place):
    write_input(place, 60)
    job = Run(place, *JOB, faults=SLOW)
    wait_for(lambda: num_records(place / "out.jsonl") > 2)
    with (place / "in.jsonl").open("a") as file:
        file.write('{"prompt":"05."}\n')
    ended = job.wait()
    assert ended.code == 3 and "the input changed while the job ran" in ended.err


@pytest.mark.parametrize("step", [1, 2, 9, 20])
def test_a_device_that_fails(place, step):
    write_input(place, 60)
    ended = run(place, *JOB, faults=Faults(fail_at_step=step))
    assert ended.code == 3 and "Traceback" not in ended.err
    assert "a step failed: RuntimeError: INTERNAL: the device is on fire. out.jsonl holds whole" in ended.err
    for record in map(json.loads, (place / "out.jsonl").read_bytes().splitlines()):
        assert "step failed" not in str(record), "what was running is no error: it runs again"
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
    errors = [json.loads(line)["error"] for line in (place / "out.jsonl").read_bytes().splitlines()[9::10]]
    assert [error["line"] for error in errors] == [20, 40, 60]
