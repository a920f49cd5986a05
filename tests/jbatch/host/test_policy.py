"""Policies are sort keys, modes are admission rules."""

import math

import numpy as np
import pytest

from jbatch.errors import RequestError
from jbatch.host.policy import MODES, POLICIES, key_of, may_start
from jbatch.host.request import Sequence
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
    wait = {name for name, mode in MODES.items() if mode.wait_full}
    assert (refill, hold, one_by_one) == ({"continuous"}, {"static-padded"}, {"unbatched"})
    assert wait == {"static-full"}
    assert list(MODES) == ["continuous", "static", "static-full", "static-padded", "unbatched"]


@pytest.mark.parametrize(
    "arrivals, now, starts",
    [
        ((5.0, 6.0, 7.0), 7.0, True),  # full
        ((5.0, 7.0), 7.9, False),
        ((7.0, 5.0), 8.0, True),  # the oldest has waited 3 seconds, whoever is first in line
        ((5.0,), 5.0, False),
        ((8.5,), 8.0, True),  # an arrival that is still to come is of another clock
        ((8.5, 7.0), 8.0, False),
        ((), 8.0, False),
    ],
)
def test_a_batch_waits_until_it_is_full_or_late(arrivals, now, starts):
    waiting = [Sequence(idx, request([1], 1, arrival=at), [1], 1) for idx, at in enumerate(arrivals)]
    assert may_start(waiting, 3, now, timeout_s=3.0) == starts


def test_what_was_preempted_waits_for_nobody():
    begun = Sequence(0, request([1], 9, arrival=5.0), [1, 2], 2, num_preemptions=1)
    assert may_start([begun], 3, 5.0, timeout_s=3.0)


@pytest.mark.parametrize(
    "key, plain",
    [
        ((1, 2.5), (1, 2.5)),
        ((), ()),
        ((np.int64(3), np.float32(0.5), True), (3.0, 0.5, 1.0)),
        ((-math.inf,),) * 2,
    ],
)
def test_a_policy_gives_a_tuple_of_numbers(key, plain):
    assert key_of(lambda request: key, request([1], 1)) == plain


@pytest.mark.parametrize(
    "key",
    [("x",), (math.nan,), 3, None, [1], "1", (None,), (1, (2,)), (np.zeros(2),), (1j,), (10**400, 0.5, "")],
)
def test_a_key_that_cannot_be_sorted_is_refused_by_name(key):
    def mine(request):
        return key

    with pytest.raises(RequestError, match=r"^policy='mine': it must give a tuple of numbers"):
        key_of(mine, request([1], 1))


def test_a_policy_that_fails_refuses_its_request():
    with pytest.raises(RequestError, match="policy='<lambda>': it fails for this request: ZeroDivisionError"):
        key_of(lambda request: (1 / 0,), request([1], 1))
    with pytest.raises(KeyboardInterrupt):
        key_of(interrupted, request([1], 1))


def interrupted(request):
    raise KeyboardInterrupt
