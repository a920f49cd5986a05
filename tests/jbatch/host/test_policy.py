"""Policies are sort keys, modes are admission rules."""

import pytest

from jbatch.host.policy import MODES, POLICIES
from tests.helpers.schedules import request

#          name: max_tokens, predicted_len, arrival, priority
REQUESTS = {"a": (5, None, 2.0, 1), "b": (9, 3, 1.0, 1), "c": (4, 8, 3.0, 0), "d": (5, None, 1.5, -2)}


ORDERS = {"fcfs": "bdac", "sjf": "bdac", "ljf": "cdab", "priority": "dcba"}


@pytest.mark.parametrize("policy, order", ORDERS.items())
def test_order(policy, order):
    requests = [
        request([1], max_tokens, request_id=name, predicted_len=predicted, arrival=arrival, priority=priority)
        for name, (max_tokens, predicted, arrival, priority) in REQUESTS.items()
    ]
    assert "".join(r.request_id for r in sorted(requests, key=POLICIES[policy])) == order


def test_a_prediction_counts_before_max_tokens():
    short, long = request([1], 100, predicted_len=2), request([1], 10)
    assert POLICIES["sjf"](short) < POLICIES["sjf"](long)
    assert POLICIES["ljf"](long) < POLICIES["ljf"](short)


def test_a_prediction_of_zero_is_one():
    assert POLICIES["sjf"](request([1], 100, predicted_len=0)) == (0, 0.0)


def test_modes():
    refill = {name for name, mode in MODES.items() if mode.refill}
    hold = {name for name, mode in MODES.items() if mode.hold_finished}
    one_by_one = {name for name, mode in MODES.items() if mode.one_by_one}
    assert (refill, hold, one_by_one) == ({"continuous"}, {"static-padded"}, {"unbatched"})
    assert list(MODES) == ["continuous", "static", "static-padded", "unbatched"]
