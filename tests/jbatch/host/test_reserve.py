"""Whether one more may join, against a pencil."""

import dataclasses
import math

import pytest

from jbatch.host.lengths.prediction import LEVELS
from jbatch.host.request import Sequence
from jbatch.host.reserve import Forecast, NoEvict, Optimistic, Pool, reserve_of
from tests.helpers.schedules import request

POOL = Pool(num_usable=10, page_size=4)


def sequence(prompt_len=4, max_tokens=12, done=0, predicted=None, quantiles=None):
    asked = request([1] * prompt_len, max_tokens, predicted_len=predicted)
    asked = dataclasses.replace(asked, length_quantiles=quantiles)
    return Sequence(0, asked, [1] * (prompt_len + done), prompt_len + done)


def test_by_name():
    assert isinstance(reserve_of("optimistic", POOL, 0.1), Optimistic)
    assert reserve_of("no-evict", POOL, 0.1) == NoEvict(POOL)
    assert reserve_of("forecast", POOL, 0.1) == Forecast(POOL, 0.1)


def test_optimistic_admits_whoever_comes():
    assert Optimistic().admits([sequence()] * 99, sequence())


def test_no_evict_keeps_room_for_the_longest():
    reserve = NoEvict(POOL)  # a sequence has 16 tokens at most, 4 pages
    assert reserve.admits([], sequence()) and reserve.admits([sequence()], sequence())
    assert not reserve.admits([sequence()] * 2, sequence())
    assert reserve.admits([sequence()] * 2, sequence(max_tokens=4))  # 2 pages


def test_a_forecast_goes_by_what_is_expected():
    """Of 12 tokens that it may generate, each is expected to have 4: 8 tokens, 2 pages."""
    reserve, expected = Forecast(POOL, 0.1), sequence(predicted=4)
    assert reserve.most_pages([expected] * 5) == 10
    assert reserve.admits([expected] * 4, expected) and not reserve.admits([expected] * 5, expected)
    assert reserve.admits([], sequence(max_tokens=900))  # nothing runs: it is the first in line


def test_who_ends_first_makes_room():
    """One of 12 tokens more, two that end with their next token and have 4 pages each."""
    ending = [sequence(prompt_len=4, max_tokens=12, done=11, predicted=12)] * 2
    assert Forecast(POOL, 0.1).most_pages([*ending, sequence(predicted=12)]) == 4 + 4 + 2


def test_the_spread_of_lengths_is_a_margin():
    """Half of 20 end after 2 tokens, with 2 pages; the others after 12 or so, with 4. So about 10 are there
    with 4 pages in the end. The more certain, the more room."""
    spread = (2.0, 2.0, 2.0, 12.0, 12.0, 12.0)
    sequences = [sequence(quantiles=spread) for _ in range(20)]
    likely = [Forecast(POOL, probability).most_pages(sequences) for probability in (0.5, 0.1, 0.01)]
    assert 36 <= likely[0] < likely[1] < likely[2] < 60


def test_it_never_asks_for_more_than_all_of_it():
    """Eight pages at the last moment at which it may still run: no margin is beyond them."""
    even = sequence(prompt_len=1, max_tokens=39, quantiles=(1.0, 1.0, 39.0, 39.0, 39.0, 39.0))
    assert Forecast(POOL, 0.001).most_pages([even]) == 8


def test_what_has_outlived_its_prediction_may_go_on_to_its_end():
    late = sequence(max_tokens=100, done=50, quantiles=tuple(float(level) for level in LEVELS))
    assert 14 < Forecast(POOL, 0.1).most_pages([late]) < 26  # 54 tokens are 14 pages, 104 are 26


@pytest.mark.parametrize("probability", [0.001, 0.5, 0.999])
def test_numbers_are_finite(probability):
    sequences = [sequence(max_tokens=1), sequence(done=12), sequence(quantiles=(1.0,) * 6)]
    assert math.isfinite(Forecast(POOL, probability).most_pages(sequences))
