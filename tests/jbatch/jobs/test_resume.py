"""Jobs that are killed: nothing that was finished is lost or there twice, and the texts are the same."""

import json
import os
import random

import pytest

from jbatch.errors import ConfigError
from jbatch.jobs import resume as job_resume
from jbatch.jobs.input import Ids
from jbatch.jobs.resume import drop_errors, find_done, read_results, sort_by_line
from tests.helpers import fake_job
from tests.helpers.fake_job import JOB, check_whole, num_results, run, write_input
from tests.helpers.faults import Faults

NUM_LINES = 60
EVERY_LINE = range(1, NUM_LINES + 1)
BOUNDARY_KILLS = [  # in this order: each run goes on from the one before
    ("write", 1, "after"),  # the lock's process id
    ("fsync", 1, "before"),  # of the output's directory
    ("fsync", 2, "before"),  # of the state file
    ("replace", 1, "before"),
    ("fsync", 3, "after"),
    ("write", 2, "before"),  # the first result
    ("write", 2, "torn"),
    ("ftruncate", 2, "before"),  # of the torn result
    ("ftruncate", 2, "after"),
    ("write", 5, "torn"),
    ("write", 5, "after"),
]


def test_a_job_killed_at_nineteen_points(place):
    """One job, killed at each kind of moment in turn, then at random steps."""
    write_input(place, NUM_LINES)
    rng = random.Random(0)
    faults = [Faults(kill=kill) for kill in BOUNDARY_KILLS]
    faults += [Faults(kill_at_step=rng.randint(2, 12)) for _ in range(8)]
    before = 0
    for fault in faults:
        ended = run(place, *JOB, faults=fault)
        assert ended.code == -9, f"{fault} came too late: {ended.err}"
        assert num_results(place / "out.jsonl") >= before, "a result was lost"
        before = num_results(place / "out.jsonl")
    assert 0 < before < NUM_LINES
    ended = run(place, *JOB)
    assert ended.code == 1 and f"going on: {before} of 60 have their results" in ended.err
    check_whole(place / "out.jsonl", EVERY_LINE)
    assert run(place, *JOB).code == 1 and num_results(place / "out.jsonl") == NUM_LINES


@pytest.mark.parametrize("kill", [("fsync", 2, "before"), ("replace", 1, "before"), ("replace", 1, "after")])
def test_a_kill_while_the_output_is_sorted(place, kill):
    write_input(place, NUM_LINES)
    run(place, *JOB)
    unsorted = (place / "out.jsonl").read_bytes()
    assert run(place, *JOB, "--ordered", faults=Faults(kill=kill)).code == -9
    if kill[2] != "after":
        assert (place / "out.jsonl").read_bytes() == unsorted
    run(place, *JOB)
    assert sorted(path.name for path in place.glob("out*")) == ["out.jsonl", "out.jsonl.job.json"]
    ended = run(place, *JOB, "--ordered")
    assert ended.code == 1 and "nothing is left to do" in ended.err
    results = check_whole(place / "out.jsonl", EVERY_LINE)
    assert [result["custom_id"] for result in results] == [fake_job.id_of(number) for number in EVERY_LINE]


@pytest.mark.parametrize("kill", [("replace", 1, "before"), ("replace", 1, "after"), ("write", 3, "torn")])
def test_a_kill_while_errors_are_retried(place, kill):
    write_input(place, NUM_LINES)
    assert run(place, *JOB).code == 1
    errors = [n for n in EVERY_LINE if n % 10 == 0]
    answered = [n for n in EVERY_LINE if n % 10]
    assert run(place, *JOB, "--retry-errors", faults=Faults(kill=kill)).code == -9
    with open(place / "out.jsonl", "rb") as file:
        there = {json.loads(line)["custom_id"] for line in file if line.endswith(b"\n")}
    assert {fake_job.id_of(n) for n in answered} <= there, "an answer was lost"
    ended = run(place, *JOB, "--retry-errors")
    assert ended.code == 1 and f"{len(errors)} lines with errors" in ended.err
    check_whole(place / "out.jsonl", EVERY_LINE)


def test_an_error_that_is_retried_becomes_an_answer(place):
    """After a longer context, say: here the options that lines do without change."""
    lines = [{"prompt": "05.", "custom_id": "a", "max_tokens": 3}, {"prompt": "05.", "custom_id": "b"}]
    (place / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(place, *JOB, "--max-tokens", "500").code == 1
    ended = run(place, *JOB, "--max-tokens", "2", "--retry-errors", "--force")
    assert ended.code == 0 and "removed 1 error results: their lines run again" in ended.err
    results = [json.loads(line) for line in (place / "out.jsonl").read_bytes().splitlines()]
    assert [(result["custom_id"], result["text"]) for result in results] == [
        ("a", "06.13.27."),
        ("b", "06.13."),
    ]


# The parts.


def ids_of(*names: str) -> Ids:
    ids = Ids()
    for line_no, name in enumerate(names, start=1):
        ids.add(name, line_no)
    ids.sort()
    return ids


def write_results(path, *results: object) -> str:
    path.write_text("".join((json.dumps(r) if isinstance(r, dict) else r) + "\n" for r in results))
    return str(path)


def result(name: str, error: object = None, **fields: object) -> dict:
    return {"custom_id": name, "error": error, **fields}


REFUSED, ANSWERED = ({"status_code": code, "body": {}} for code in (400, 200))


def test_what_is_done(tmp_path):
    path = write_results(tmp_path / "o", result("c"), result("a", {"code": "x"}), result("stranger"))
    done = find_done(path, ids_of("a", "b", "c"), 5)
    assert [line_no in done for line_no in range(6)] == [False, True, False, True, False, False]
    assert (done.num_done, done.num_errors, len(done.foreign)) == (2, 1, 1)
    assert [(r.custom_id, r.is_error) for r in read_results(path)] == [
        ("c", False),
        ("a", True),
        ("stranger", False),
    ]


@pytest.mark.parametrize(
    "line", ["", "{", "null", "[]", "{}", '{"custom_id":7}', '{"custom_id":null}', "[" * 99999, "\0"]
)
def test_a_line_that_is_no_result_is_refused(tmp_path, line):
    path = write_results(tmp_path / "o", result("a"), line, result("b"))
    with pytest.raises(ConfigError, match="line 2 is no result with a custom_id"):
        find_done(path, ids_of("a", "b"), 2)


def test_two_results_of_one_id_are_refused(tmp_path):
    path = write_results(tmp_path / "o", result("a"), result("a"))
    with pytest.raises(ConfigError, match="two results of custom_id 'a'"):
        find_done(path, ids_of("a", "b"), 2)


def test_errors_are_dropped(tmp_path):
    """Those of OpenAI lines too: responses, and as jbatch wrote them once."""
    path = write_results(
        tmp_path / "o",
        *(result("a", {}), result("b"), result("c", "why"), result("d", response=ANSWERED)),
        *(result("e", response=REFUSED), result("f", {"code": "x"}, response=None)),
    )
    assert (drop_errors(path), [r.custom_id for r in read_results(path)]) == (4, ["b", "d"])
    inode = os.stat(path).st_ino
    assert drop_errors(path) == 0 and os.stat(path).st_ino == inode, "rewritten for nothing"


def test_results_are_sorted_by_line_and_strangers_come_last(tmp_path):
    path = write_results(tmp_path / "o", result("c"), result("stranger"), result("a"), result("b"))
    ids = ids_of("a", "b", "c", "d")
    sort_by_line(path, find_done(path, ids, 4))
    assert [r.custom_id for r in read_results(path)] == ["a", "b", "c", "stranger"]


def test_a_torn_end_is_no_result(tmp_path):
    path = write_results(tmp_path / "o", result("a", {}), result("b"))
    with open(path, "a") as file:
        file.write('{"custom_id":"c"')
    assert [r.custom_id for r in read_results(path)] == ["a", "b"]
    assert (drop_errors(path), [r.custom_id for r in read_results(path)]) == (1, ["b"])


def test_blocks_of_a_sort_join(tmp_path, monkeypatch):
    monkeypatch.setattr(job_resume, "BLOCK", 2)
    path = write_results(tmp_path / "o", *(result(name) for name in "edcba"))
    sort_by_line(path, find_done(path, ids_of(*"abcde"), 5))
    assert [r.custom_id for r in read_results(path)] == list("abcde")


def test_what_is_sorted_is_left_alone(tmp_path):
    path = write_results(tmp_path / "o", result("a"), result("c"))
    inode = os.stat(path).st_ino
    sort_by_line(path, find_done(path, ids_of("a", "b", "c"), 3))
    assert os.stat(path).st_ino == inode
