"""Predictors that need no training, against a pencil."""

import pytest

from jbatch.errors import ConfigError
from jbatch.host.lengths.find import find_predictor
from jbatch.host.lengths.history import RECENT, History
from jbatch.host.lengths.learned import PredictorError
from jbatch.host.lengths.prediction import LEVELS, bounded
from jbatch.host.lengths.predictors import Constant, Oracle, PromptLength, RunningMean
from tests.helpers.schedules import request

ASKED = request([1] * 10, 100)


def history(*pairs):
    made = History()
    for prompt_len, output_len in pairs:
        made.add(prompt_len, output_len)
    return made


def test_predictions_are_ascending_and_can_be_kept():
    made = bounded(500.0, [0.0, 3.0, 2.0, 50.0, 150.0, 149.0], ASKED)
    assert made == (100.0, (1.0, 3.0, 3.0, 50.0, 100.0, 100.0))
    assert made.at(0.25) == 3.0 and made.at(0.625) == pytest.approx(26.5) and made.at(1.0) == 100.0


@pytest.mark.parametrize("predictor", [RunningMean(), PromptLength()])
def test_before_anything_has_ended_it_is_max_tokens(predictor):
    assert predictor.predict(ASKED, History()) == (100.0, (100.0,) * len(LEVELS))


def test_the_running_mean():
    made = RunningMean().predict(ASKED, history(*[(5, length) for length in range(1, 102)], (5, 1000)))
    assert made.expected == pytest.approx((101 * 51 + 1000) / 102)
    assert made.at(0.5) == pytest.approx(51.5) and made.quantiles[-1] == 100.0


def test_in_proportion_to_the_prompt():
    made = PromptLength().predict(ASKED, history((10, 20), (100, 50), (4, 4)))
    assert made.expected == 10.0  # ratios 2, 0.5 and 1


def test_the_recent_ones_count():
    made = history(*[(1, 9)] * 10, *[(1, 5)] * RECENT)
    assert RunningMean().predict(ASKED, made).quantiles == (5.0,) * len(LEVELS)
    assert len(made) == RECENT + 10


def test_history_is_sorted_again_when_it_has_grown():
    made = history((1, 3))
    assert made.quantiles((0.5,)) == [3.0]
    made.add(1, 5)
    assert made.quantiles((0.5,)) == [4.0]


def test_the_oracle_and_its_noise():
    assert Oracle({"r": 7}).predict(ASKED, History()).expected == 7.0
    noisy = Oracle({str(number): 40 for number in range(500)}, sigma=0.2, seed=1)
    asked = [request([1], 1000, request_id=str(number)) for number in range(500)]
    made = [noisy.predict(each, History()) for each in asked]
    assert made == [noisy.predict(each, History()) for each in asked]  # the same whenever it is asked
    close = sum(40 / 1.2214 < each.expected < 40 * 1.2214 for each in made)  # exp(0.2)
    assert 300 < close < 380
    covered = sum(each.at(0.9) >= 40 for each in made) / 500
    assert 0.85 < covered < 0.95


def test_a_constant():
    assert Constant(3).predict(ASKED, History()).at(0.99) == 3.0


def test_by_name(tmp_path):
    assert find_predictor(None) is None
    assert isinstance(find_predictor("running-mean"), RunningMean)
    assert isinstance(find_predictor("prompt-length"), PromptLength)
    with pytest.raises(ConfigError, match="predictor='best': must be running-mean, prompt-length or a file"):
        find_predictor("best")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(PredictorError, match=r"x.json: is no predictor"):
        find_predictor(str(tmp_path / "x.json"))
