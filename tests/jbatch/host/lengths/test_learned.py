"""A trained predictor as data: what it says, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from jbatch.host.lengths.features import FEATURES, features
from jbatch.host.lengths.history import History
from jbatch.host.lengths.learned import Learned, PredictorError, Trees, read_predictor
from jbatch.host.lengths.prediction import LEVELS
from tests.helpers.schedules import request

FENCE = FEATURES.index("fence")


def stump(level):
    """log1p of 10 * level, and 1 more where there is a code fence."""
    return Trees(
        base=float(np.log1p(10 * level)),
        feature=np.array([[FENCE, 0, 0]]),
        threshold=np.array([[0.5, 0.0, 0.0]]),
        left=np.array([[1, 1, 2]]),
        right=np.array([[2, 1, 2]]),
        value=np.array([[0.0, 0.0, 1.0]]),
        depth=2,
    )


MADE = Learned(tuple(map(stump, LEVELS)), {"source": "a pencil"})


def asked(text=None, prompt_len=1):
    return dataclasses.replace(request([1] * prompt_len, 100), prompt=text)


def expected(text=None):
    return MADE.predict(asked(text), History()).expected


def test_a_leaf_is_reached():
    assert expected("no code") == pytest.approx(5.0)
    assert expected("```\n1\n```") == pytest.approx(np.e * 6 - 1)
    assert expected() == pytest.approx(5.0)  # token ids alone


def test_it_is_written_and_read(tmp_path):
    MADE.write(tmp_path / "made.json")
    again = read_predictor(tmp_path / "made.json")
    assert again.predict(asked("```"), History()) == MADE.predict(asked("```"), History())
    assert again.about == MADE.about


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema=2: must be 1"),
        ({"features": ["a"]}, "features=.*: must be .*: train it anew"),
        ({"levels": [0.5]}, "levels="),
        ({"trees": []}, "0 levels of trees, not 6"),
        ({"trees": [{}] * 6}, "trees: 'feature'"),
        ({"trees": None}, "trees"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "made.json"
    MADE.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PredictorError, match=f"made.json: .*{message}"):
        read_predictor(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("feature", [[99, 0, 0]], "feature beyond 0 to"),
        ("left", [[1, 1, 3]], "left beyond 0 to 2"),
        ("right", [[-1, 1, 2]], "right beyond"),
        ("value", [[0.0, 0.0]], "arrays of shapes"),
        ("threshold", [[float("inf"), 0, 0]], "not finite"),
        ("base", float("nan"), "base=nan: must be a finite number"),
        ("depth", 10**9, "depth=1000000000: must be from 0 to 3"),
    ],
)
def test_trees_that_lead_elsewhere_are_refused(tmp_path, field, value, message):
    path = tmp_path / "made.json"
    MADE.write(path)
    document = json.loads(path.read_text())
    document["trees"][2][field] = value
    path.write_text(json.dumps(document))
    with pytest.raises(PredictorError, match=message):
        read_predictor(path)


def test_features_of_a_text():
    text = "Why is 12 even?\n```x```\nExplain step by step"
    found = dict(zip(FEATURES, features(asked(text, 3)), strict=True))
    assert found["log_prompt_len"] == pytest.approx(np.log(3))
    assert found["fence"] == found["explain"] == found["list"] == 1
    assert found["question"] == found["code"] == found["long"] == 0
    assert np.isnan(features(asked())[2:]).all()
