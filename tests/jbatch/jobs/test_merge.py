"""`jbatch merge`: complete shards become one output; of others it is said what is wrong with which."""

import fcntl
import json
import os
from contextlib import chdir

import pytest

from jbatch.cli import main as cli
from jbatch.errors import ConfigError
from jbatch.jobs.merge import merge
from tests.helpers.fake_job import check_whole, line_of, run_here, write_input

OUTPUTS = ["3.jsonl", "1.jsonl", "2.jsonl"]  # in no order
NUM_LINES = 40


def run_shard(place, number: int, *args: object, num_shards: int = 3, out: str | None = None) -> None:
    shard = ("--shard", f"{number}/{num_shards}")
    run_here(place, "-i", "in.jsonl", "-o", out or f"{number}.jsonl", *shard, *args)


@pytest.fixture
def shards(place, monkeypatch):
    """A place with the outputs of three shards, in which the test runs."""
    write_input(place, NUM_LINES)
    for number in (1, 2, 3):
        run_shard(place, number)
    monkeypatch.chdir(place)
    return place


def refusal(outputs=OUTPUTS, output_file="merged.jsonl", input_file=None) -> str:
    """Why these are not merged; nothing is left behind then."""
    before = set(os.listdir())
    with pytest.raises(ConfigError) as error:
        merge(outputs, output_file, input_file, print)
    assert set(os.listdir()) == before
    return str(error.value)


def test_three_shards_are_one_job(shards):
    said = []
    assert merge(OUTPUTS, "merged.jsonl", None, said.append) == 1  # some results are errors
    assert said == [f"merged 3 outputs: 40 results, 4 of them errors, in the order of {shards / 'in.jsonl'}"]
    run_here(shards, "-i", "in.jsonl", "-o", "whole.jsonl", "--ordered")
    assert (shards / "merged.jsonl").read_bytes() == (shards / "whole.jsonl").read_bytes()
    check_whole(shards / "merged.jsonl", range(1, NUM_LINES + 1))
    ended = run_here(shards, "-i", "in.jsonl", "-o", "merged.jsonl")
    assert "nothing is left to do" in ended.err, "the job does not know the merged output as its own"


def test_the_command(shards, monkeypatch):
    said = []
    monkeypatch.setattr(cli, "say", said.append)
    monkeypatch.setattr("jbatch.cli.commands.say", said.append)
    os.rename("in.jsonl", "moved.jsonl")
    assert cli._run(["merge", *OUTPUTS, "-o", "merged.jsonl"]) == 2
    assert said.pop().startswith(f"input_file='{shards}/in.jsonl': cannot be read: No such file")
    assert cli._run(["merge", *OUTPUTS, "-o", "merged.jsonl", "-i", "moved.jsonl"]) == 1
    check_whole(shards / "merged.jsonl", range(1, NUM_LINES + 1))
    assert cli._run(["merge", *OUTPUTS, "-o", "merged.jsonl"]) == 2
    assert said.pop() == "output_file='merged.jsonl': is there already: name another, or remove it"


def test_a_single_output_is_sorted(place):
    (place / "in.jsonl").write_text("".join(json.dumps(line_of(number)) + "\n" for number in (1, 2, 3)))
    run_here(place, "-i", "in.jsonl", "-o", "out.jsonl")
    with chdir(place):
        assert merge(["out.jsonl"], "merged.jsonl", None, print) == 0


def test_blank_lines_and_shards_without_lines(place):
    lines = [json.dumps(line_of(number)) for number in (1, 2)]
    (place / "in.jsonl").write_text("\n\n".join(lines))  # lines 1 and 3
    for number in (1, 2, 3, 4):
        run_shard(place, number, num_shards=4)
    with chdir(place):
        assert merge([f"{number}.jsonl" for number in (1, 2, 3, 4)], "merged.jsonl", None, print) == 0
    results = [json.loads(line) for line in (place / "merged.jsonl").read_text().splitlines()]
    assert [result["custom_id"] for result in results] == ["request 1", "request 2"]


def edit(path, change) -> None:
    """Let `change` make other lines of an output's."""
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_lost_results(shards):
    edit(shards / "1.jsonl", lambda lines: [line for line in lines if b'"request 13"' not in line])
    edit(shards / "3.jsonl", lambda lines: [])
    assert refusal() == (
        "outputs=['1.jsonl', '3.jsonl']: shard 1/3 (1.jsonl) has no result of line 13, "
        "custom_id 'request 13'; "
        "shard 3/3 (3.jsonl) has no result of 13 lines, the first of them 3, "
        "custom_id 'request 3'. The same command goes on with each"
    )


def test_a_torn_result_is_none(shards):
    path = shards / "2.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert "shard 2/3 (2.jsonl) has no result of line " in refusal()


def test_what_is_of_no_shard(shards):
    raw = (shards / "2.jsonl").read_bytes().splitlines(keepends=True)
    own, other = (next(line for line in raw if b'"request 2"' in line) for _ in "ab")
    edit(shards / "2.jsonl", lambda lines: [*lines, own])
    assert refusal() == ("output='2.jsonl': shard 2/3 has a result of custom_id 'request 2' (line 2) twice")
    edit(shards / "2.jsonl", lambda lines: lines[:-1])
    edit(shards / "1.jsonl", lambda lines: [*lines, other])
    where = "output='1.jsonl': shard 1/3 has a result of custom_id"
    assert refusal() == f"{where} 'request 2' which is line 2, of shard 2/3"
    edit(shards / "1.jsonl", lambda lines: [*lines[:-1], b'{"custom_id": "x"}\n'])
    assert refusal() == f"{where} 'x' which is no line of the input"
    edit(shards / "1.jsonl", lambda lines: [*lines[:-1], b"hello\n"])
    assert refusal().startswith("output='1.jsonl': line 15 is no result with a custom_id")


def test_shards_that_are_missing_doubled_or_of_another_cut(shards):
    assert refusal(["3.jsonl"]) == "outputs=['3.jsonl']: missing: shard 1/3, 2/3"
    assert refusal([*OUTPUTS, "2.jsonl"]).endswith(": shard 2/3 is there twice")
    run_shard(shards, 1, num_shards=2, out="half.jsonl")
    assert refusal([*OUTPUTS, "half.jsonl"]).endswith(
        ": shard 1/2 (half.jsonl) and shard 1/3 (1.jsonl) are of different cuts"
    )


@pytest.mark.parametrize(
    "args, changes",
    [
        (("--seed", "7"), "seed (7, in 1.jsonl 0)"),
        (("--temperature", "0.5"), "temperature (0.5, in 1.jsonl default)"),
        (("--max-model-len", "64"), "max_model_len (64, in 1.jsonl default)"),
    ],
)
def test_other_options(shards, args, changes):
    (shards / "2.jsonl").unlink()
    run_shard(shards, 2, *args)
    assert refusal() == f"output='2.jsonl': shard 2/3 (2.jsonl) has another {changes}"


def test_another_model_device_or_input(shards):
    state = json.loads((shards / "2.jsonl.job.json").read_text())
    other = {**state, "numerics": {**(state["numerics"] or {}), "jax": "9"}}
    first = json.loads((shards / "1.jsonl.job.json").read_text())
    first["numerics"] = {"jax": "8"}
    (shards / "1.jsonl.job.json").write_text(json.dumps(first))
    (shards / "2.jsonl.job.json").write_text(json.dumps(other))
    assert refusal() == "output='2.jsonl': shard 2/3 (2.jsonl) has another jax (9, in 1.jsonl 8)"
    (shards / "2.jsonl.job.json").write_text(json.dumps(state | {"model": {"config.json": "1:a"}}))
    assert "shard 2/3 (2.jsonl) has another model (config.json)" in refusal()
    (shards / "2.jsonl.job.json").write_text(json.dumps(state | {"input": "ab"}))
    assert "shard 2/3 (2.jsonl) has another input (ab, in 1.jsonl " in refusal()
    (shards / "2.jsonl.job.json").unlink()
    assert refusal() == ("output='2.jsonl': 2.jsonl.job.json is not there, or no job's: no output of a job")


def test_an_input_that_changed(shards):
    with (shards / "in.jsonl").open("a") as file:
        file.write("{}\n")
    assert ": is not what 1.jsonl answers: sha256 " in refusal()


def test_a_shard_that_runs(shards):
    with (shards / "2.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refusal() == "output='2.jsonl': a job is writing to it: wait for its end"


def test_files_of_others_stay(shards):
    (shards / "merged.jsonl").write_text("mine")
    assert "is there already" in refusal()
    (shards / "merged.jsonl").unlink()
    (shards / "merged.jsonl.job.json").write_text("mine")
    assert "merged.jsonl.job.json is not jbatch's" in refusal()
    assert "must be a file" in refusal(output_file="-")
    assert "there is no folder" in refusal(output_file="no/merged.jsonl")
