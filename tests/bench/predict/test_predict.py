"""Training and judging, on lengths that are made up and known."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from bench.predict import made_up
from bench.predict.judge import floor_mae, judge
from bench.predict.samples import Sample, SamplesError, made_request, read_results
from bench.predict.train import train
from jbatch.errors import JBatchError
from jbatch.host.lengths.features import features
from jbatch.host.lengths.history import History
from jbatch.host.lengths.learned import MISSING, read_predictor
from jbatch.host.lengths.predictors import Oracle, RunningMean
from tests.helpers.command import run


def samples(number, seed=0):
    """Stories are long, labels are short, each within a factor of two."""
    rng, made = random.Random(seed), []
    for idx in range(number):
        story = rng.random() < 0.5
        text = "Write a detailed story" if story else "Classify this in one word"
        asked = made_request(str(idx), rng.randint(5, 50), 1000, text)
        made.append(Sample(asked, round((400 if story else 10) * 2 ** rng.uniform(-1, 1))))
    return made


@pytest.fixture(scope="module")
def learned():
    return train(samples(400), {})


def test_it_learns_what_the_running_mean_cannot_know(learned):
    seen, judged = samples(100), samples(200, seed=1)
    ours, mean = judge(learned, seen, judged), judge(RunningMean(), seen, judged)
    assert ours.mae < 0.6 * mean.mae and ours.tau > 0.5
    assert 0.4 < ours.coverage[0.5] < 0.6 and 0.8 < ours.coverage[0.9] < 0.98


def test_numbers_are_those_of_the_library(learned):
    """Trees that were taken out predict what scikit-learn does."""
    sklearn = pytest.importorskip("sklearn.ensemble")
    from bench.predict import train as module

    kept = []

    class Kept(sklearn.GradientBoostingRegressor):
        def fit(self, *arguments):
            kept.append(self)
            return super().fit(*arguments)

    made = samples(150)
    rows = np.nan_to_num(np.array([features(each.request) for each in made]), nan=MISSING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn, "GradientBoostingRegressor", Kept)
        trees = module._fit(rows, np.log1p([each.output_len for each in made]), 0.75, 0)
    ours = [trees.predict(row) for row in rows]
    np.testing.assert_allclose(ours, kept[0].predict(rows), rtol=1e-5)


def test_the_oracle_is_right():
    made = samples(50)
    oracle = Oracle({each.request.request_id: each.output_len for each in made})
    score = judge(oracle, [], made)
    assert score.mae == 0 and score.tau == pytest.approx(1.0) and set(score.coverage.values()) == {1.0}


def test_what_does_not_vary_has_no_tau():
    made = [Sample(made_request(str(idx), 5, 50), 7) for idx in range(9)]
    assert judge(RunningMean(), made, made).tau is None


def test_the_floor_is_of_repeated_prompts():
    asked, other = made_request("a", 5, 50), made_request("b", 5, 50)
    made = [Sample(asked, length) for length in (2, 4, 9)] + [Sample(other, 100)]
    assert floor_mae(made) == pytest.approx((2 + 0 + 5) / 3)
    assert floor_mae(made[-1:]) is None


def test_too_few_are_refused():
    with pytest.raises(JBatchError, match="99 answers to train on: at least 100 are needed"):
        train(samples(99), {})


def write_job(tmp_path, number):
    lines, results = [], []
    for each in samples(number):
        name = each.request.request_id
        lines.append({"custom_id": name, "prompt": each.request.prompt, "max_tokens": 1000})
        usage = {"prompt_tokens": len(each.request.prompt_token_ids), "completion_tokens": each.output_len}
        results.append({"custom_id": name, "text": "", "token_ids": [0] * each.output_len, "usage": usage})
    results.insert(1, {"custom_id": "bad", "error": {"code": "empty_prompt", "message": "x"}})
    for name, content in (("in", lines), ("out", results)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.predict.train.NUM_TREES", 30)
    requests, results = write_job(tmp_path, 300)
    ended = run(capsys, "predictor", "train", results, "-i", requests, "-o", tmp_path / "made.json")
    assert (ended.code, ended.err) == (0, "")
    assert "trained on 200 answers, judged on the 100 after them" in ended.out
    assert "best by mean absolute error: learned" in ended.out
    assert f"wrote {tmp_path / 'made.json'}" in ended.out
    made, asked = read_predictor(tmp_path / "made.json"), samples(300)[0].request
    assert made.about == {"source": "out.jsonl", "num_samples": 300}
    assert 1 <= made.predict(asked, History()).expected <= 1000


def test_a_file_that_exists_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("made.json").write_text("mine")
    ended = run(capsys, "predictor", "train", "nosuch.jsonl", "-o", "made.json")
    assert ended.code == 2 and "made.json" in ended.err and "nosuch" not in ended.err
    assert (tmp_path / "made.json").read_text() == "mine"


def test_results_of_openais_form(tmp_path):
    usage = {"prompt_tokens": 3, "completion_tokens": 10}
    body = {"choices": [{"index": 0}, {"index": 1}], "usage": usage}
    line = {"custom_id": "x", "response": {"status_code": 200, "body": body}, "error": None}
    (tmp_path / "out.jsonl").write_text(json.dumps(line) + "\n")
    found = read_results(tmp_path / "out.jsonl", None, 64)
    assert [(len(each.request.prompt_token_ids), each.output_len) for each in found] == [(3, 5), (3, 5)]
    assert math.isnan(features(found[0].request)[-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no line has an answer"),
        ("[1]\n", "out.jsonl:1: must be an object"),
        ("\n{\n", "out.jsonl:2: is not JSON: {"),
        ('{"usage": {"completion_tokens": 3}}', "out.jsonl:1: usage.prompt_tokens=None: must be an integer"),
        ('{"usage": {"completion_tokens": "3", "prompt_tokens": 1}}', "usage.completion_tokens='3': must be"),
    ],
)
def test_files_without_lengths_are_refused(tmp_path, content, message):
    (tmp_path / "out.jsonl").write_text(content)
    with pytest.raises(SamplesError, match=message):
        read_results(tmp_path / "out.jsonl", None, 64)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"custom_id": "a", "prompt": "x"}, "in.jsonl: has no line with a custom_id of .*out.jsonl"),
        ({"custom_id": "0", "prompt": "x", "max_tokens": "9"}, "in.jsonl: 0: max_tokens='9': must be an int"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path, line, message):
    requests, results = write_job(tmp_path, 2)
    requests.write_text(json.dumps(line) + "\n")
    with pytest.raises(SamplesError, match=message):
        read_results(results, requests, 64)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("out.jsonl", "--num-prompts", "9"), "num_prompts=9: is for --trace"),
        (("--trace", "t.csv", "-i", "in.jsonl"), "input_file='in.jsonl': a trace has no texts"),
    ],
)
def test_what_would_have_no_effect_is_refused(capsys, flags, message):
    ended = run(capsys, "predictor", "train", *flags)
    assert ended.code == 2 and message in ended.err


def test_jobs_are_made_up_from_their_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made_up.main(["tasks", str(tmp_path / name), "--num-prompts", "3", "--seed", str(seed)])
    first, same, other = ((tmp_path / name / "in.jsonl").read_text() for name in "abc")
    assert first == same != other
    assert len(read_results(tmp_path / "a/out.jsonl", tmp_path / "a/in.jsonl", 9)) == 3 * 4


@pytest.mark.parametrize("flags", ["--num-prompts 0", "--samples -1", "--seed -1", ""])
def test_what_cannot_be_made_up_is_one_line(tmp_path, capsys, flags):
    (tmp_path / "in.jsonl").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        made_up.main(["tasks", str(tmp_path), *flags.split()])
    assert ended.value.code == 2 and (tmp_path / "in.jsonl").read_text() == "mine"
    assert ("must be an integer from" if flags else "File exists") in capsys.readouterr().err


def test_either_results_or_a_trace(capsys):
    ended = run(capsys, "predictor", "train")
    assert ended.code == 2 and "results=None: give either OUT.jsonl or --trace FILE" in ended.err
