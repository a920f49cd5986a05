"""The orders that named policies give."""

import math

import pytest

from jbatch.host.limits import SchedulerView
from jbatch.host.policies import POLICIES, Weights, adaptive, earliest_deadline, score
from jbatch.host.request import LatencyLimits
from tests.helpers.schedules import request

VIEW = SchedulerView(10.0, 0, 0, 0)
WEIGHTS = Weights()

#          name: max_tokens, predicted_len, arrival, priority
REQUESTS = {"a": (5, None, 2.0, 1), "b": (9, 3, 1.0, 1), "c": (4, 8, 3.0, 0), "d": (5, None, 1.5, -2)}
ORDERS = {
    "fcfs": "bdac",
    "sjf": "bdac",
    "ljf": "cdab",
    "priority": "dcba",
    "deadline": "bdac",
    "fair": "bdac",
}


def order(policy, requests, view=VIEW):
    ranked = sorted(requests, key=lambda request: policy.key(request, view.now, view))
    return "".join(each.request_id for each in ranked)


@pytest.mark.parametrize("policy, expected", ORDERS.items())
def test_order(policy, expected):
    requests = [
        request([1], max_tokens, request_id=name, predicted_len=predicted, arrival=arrival, priority=priority)
        for name, (max_tokens, predicted, arrival, priority) in REQUESTS.items()
    ]
    assert order(POLICIES[policy], requests) == expected


def test_a_prediction_counts_before_max_tokens():
    requests = request([1], 100, predicted_len=2, request_id="s"), request([1], 10, request_id="l")
    assert (order(POLICIES["sjf"], requests), order(POLICIES["ljf"], requests)) == ("sl", "ls")
    assert request([1], 100, predicted_len=0).expected_len == 0


@pytest.mark.parametrize(
    "deadline, limits, expected",
    [
        (None, (), math.inf),
        (9.0, (), 9.0),
        (None, (500.0,), 2.5),
        (9.0, (None, None, 3000.0), 5.0),
        (None, (None, 100.0), math.inf),  # without a first token there is no moment to count from
        (None, (1000.0, 100.0), 3.0),
        (None, (2000.0, 100.0, 2500.0), 4.0),
    ],
)
def test_the_earliest_deadline(deadline, limits, expected):
    asked = request([1], 11, arrival=2.0, deadline=deadline, limits=LatencyLimits(*limits))
    assert earliest_deadline(asked) == expected


def test_deadlines_come_first_and_in_order():
    requests = [
        request([1], 5, request_id=name, arrival=arrival, deadline=deadline)
        for name, arrival, deadline in (("a", 0.0, None), ("b", 1.0, 20.0), ("c", 2.0, 15.0))
    ]
    assert order(POLICIES["deadline"], requests) == "cba"


def test_the_user_who_was_served_least_comes_first():
    view = VIEW._replace(served={"x": 50.0, "y": 20.0})
    requests = [
        request([1], 5, request_id=name, arrival=arrival, user=user)
        for name, arrival, user in (("a", 0.0, "x"), ("b", 1.0, "y"), ("c", 2.0, "new"), ("d", 3.0, "y"))
    ]
    assert order(POLICIES["fair"], requests, view) == "cbda"


@pytest.mark.parametrize(
    "fields, view, expected",
    [
        ({}, {}, 4.9),  # (500 - 10) / 100
        ({"priority": -1}, {}, 14.9),
        ({"priority": 2}, {}, -15.1),
        ({"predicted_len": 500}, {}, 0.0),
        ({}, {"mean_expected_len": 11.0}, 9.9),  # shorter than what runs
        ({}, {"mean_expected_len": 10.0}, 4.9),
        ({"deadline": 20.0}, {}, 4.9 + 10 * 0.5 + 0.1 * 0),  # half of its time has passed
        ({"deadline": 1.0, "arrival": 0.0}, {}, 4.9 + 20 + 1.0),  # late: twice at most
        ({"arrival": 4.0}, {}, 4.9 + 0.6),
    ],
)
def test_the_adaptive_score_by_a_pencil(fields, view, expected):
    fields = {"arrival": 0.0 if "deadline" in fields else 10.0} | fields
    waited = 0.0 if "deadline" not in fields or fields["deadline"] == 1.0 else 1.0
    asked = request([1], 10, **fields)
    assert score(asked, 10.0, VIEW._replace(**view), WEIGHTS) == pytest.approx(expected + waited)


def test_weights_are_data():
    long, urgent = request([1], 400, request_id="l", priority=-1), request([1], 10, request_id="s")
    assert order(adaptive(), [long, urgent]) == "ls"
    assert order(adaptive(Weights(priority=0.0)), [long, urgent]) == "sl"
