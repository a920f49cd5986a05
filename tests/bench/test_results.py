"""Results files: strict JSON, never overwritten, replaced as a whole."""

import math

import pytest

from bench.results import (
    ArmResult,
    RequestRow,
    Results,
    StepRow,
    SweepPoint,
    describe,
    read,
    write,
)
from bench.workloads.workload import make_workload
from jbatch.errors import ConfigError

STEP = StepRow("decode", 4, 3, 5, 0.01, 0.5, None, 4, 3, 1, 0, 0, 40, [[0, 7, 0]])
WORKLOAD = make_workload(
    "random", num_prompts=2, seed=0, vocab_size=99, max_model_len=256, request_rate=math.inf, length_scale=0.1
)


def results(**arm):
    done = ArmResult(
        "continuous, 4 at once",
        "a row is filled again",
        max_num_seqs=4,
        repeats=(90.0, 100.0, 110.0, 80.0),
        steps=(STEP,),
        requests=(RequestRow(0.0, 0.1, 0.2, 5, 3),),
        **arm,
    )
    arms = {"continuous": done, "static": ArmResult("static", "no refill", not_run="out of memory")}
    return Results(
        "batching", {"commit": "abc"}, describe(WORKLOAD), arms, {"static": [SweepPoint(2, math.nan)]}
    )


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "sub" / "results.json"
    path.parent.mkdir()
    write(path, results())
    content = read(path)
    assert (content["schema"], content["kind"]) == (1, "batching")
    assert content["workload"]["hash"] == WORKLOAD.hash and content["workload"]["num_prompts"] == 2
    arm = content["arms"]["continuous"]
    (step,), (request,) = arm["steps"], arm["requests"]
    assert dict(zip(content["step_fields"], step, strict=True)) == STEP._asdict()
    assert dict(zip(content["request_fields"], request, strict=True))["end"] == 0.2
    assert arm["spread"] == pytest.approx(30 / 90), "over the lower of two medians"
    assert content["arms"]["static"]["not_run"] == "out of memory"
    assert content["sweep"]["static"] == [[2, None]], "strict JSON knows no NaN"
    (point,) = content["sweep_points"]["static"]
    assert dict(zip(content["sweep_fields"], point, strict=True))["max_num_seqs"] == 2
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_cut_write_leaves_the_file_before_it(tmp_path):
    path = tmp_path / "results.json"
    write(path, results())
    before = path.read_text()
    with pytest.raises(TypeError):
        write(path, results(extra={"device": object()}))
    assert path.read_text() == before


def test_one_repeat_has_no_spread():
    assert ArmResult("a", "b", repeats=(1.0,)).spread is None


@pytest.mark.parametrize("content", ["", "[1]", '{"schema": 2, "arms": {}}', '{"schema": 1}'])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"other.json': (cannot be read|is no results file of schema 1)"):
        read(path)
