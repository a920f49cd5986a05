"""The queue against a sorted list, and its ageing against a pencil."""

import math
import random

import pytest

from jbatch.errors import UserFunctionError
from jbatch.host.limits import SchedulerView
from jbatch.host.policies import POLICIES
from jbatch.host.policy import Policy
from jbatch.host.request import Sequence
from jbatch.host.waiting import OVERTAKING, PER_STEP, Waiting
from tests.helpers.schedules import request


def view(now=0.0, **fields):
    return SchedulerView(now, 0, 0, 0)._replace(**fields)


def sequence(seq_id, key=(0.0,), max_tokens=5, **fields):
    asked = request([1], max_tokens, **fields)
    return Sequence(seq_id, asked, [1], 1, key=key)


def test_it_is_a_sorted_list():
    rng, waiting, others = random.Random(0), Waiting(Policy(None, rerank_steps=0)), []
    for seq_id in range(2000):
        what = rng.random()
        if what < 0.5 or not others:
            others.append(sequence(seq_id, (float(rng.randrange(9)),)))
            waiting.push(others[-1])
        elif what < 0.7:
            waiting.forget(others.pop(rng.randrange(len(others))))
        else:
            first = min(others, key=lambda other: (other.key, other.seq_id))
            assert waiting.first() is first
            waiting.pop(first)
            others.remove(first)
            if what < 0.8:  # it is preempted
                waiting.push(first)
                others.append(first)
        assert len(waiting) == len(others) and set(waiting) == set(others)
        assert len(waiting._heap) <= 2 * len(others) + PER_STEP + 1
        assert set(waiting.some(5)) <= set(others)


def asked(policy, number=3, steps=1):
    """A queue of so many, ranked at 0, and what is first at 1."""
    waiting = Waiting(policy)
    for seq_id in range(number):
        waiting.push(sequence(seq_id, policy.key(request([1], 1, arrival=float(seq_id)), 0.0, view()),
                              arrival=float(seq_id)))  # fmt: skip
    for _ in range(steps):
        waiting.rerank(view(1.0))
    return waiting.first().seq_id


def test_keys_that_change_are_asked_for_again():
    """At 0 the first comer is first; from 1 on it is the last one."""

    def turning(request, now, view):
        return (request.arrival if now < 1 else -request.arrival,)

    assert asked(Policy(turning, rerank_steps=0), steps=99) == 0
    assert asked(Policy(turning, rerank_steps=4), steps=3) == 0
    assert asked(Policy(turning, rerank_steps=4), steps=4) == 2


def test_a_first_one_whose_key_has_grown_is_not_first():
    """As a user's tokens are counted with each admission, many times between two rankings."""
    served = {"a": 0.0, "b": 1.5}

    waiting = Waiting(Policy(lambda request, now, view: (view.served[request.user],), rerank_steps=99))
    waiting.rerank(view(served=served))
    for seq_id, user in enumerate("aaabbb"):
        waiting.push(sequence(seq_id, (served[user],), user=user))
    order = ""
    while (first := waiting.first()) is not None:
        waiting.pop(first)
        served[first.request.user] += 1
        order += first.request.user
    assert order == "aababb"


def test_a_long_queue_is_asked_seldom():
    calls = []

    def counted(request, now, view):
        calls.append(request)
        return (0.0,)

    waiting, number, steps = Waiting(Policy(counted, rerank_steps=1)), 50 * PER_STEP, 500
    for seq_id in range(number):
        waiting.push(sequence(seq_id))
    for _ in range(steps):
        waiting.rerank(view())
    assert len(calls) == steps * PER_STEP


def test_a_policy_that_fails_later_changes_nothing():
    def failing(request, now, view):
        if now > 1 and request.arrival == 2.0:
            raise ValueError("late")
        return (-now - request.arrival,)

    waiting = Waiting(Policy(failing, rerank_steps=1))
    for seq_id in range(4):
        waiting.push(sequence(seq_id, (float(seq_id),), arrival=float(seq_id)))
    with pytest.raises(UserFunctionError, match=r"failing.*: it fails for 'r': ValueError: late"):
        waiting.rerank(view(2.0))
    assert [each.key for each in waiting] == [(0.0,), (1.0,), (2.0,), (3.0,)]
    assert waiting.first().seq_id == 0


@pytest.mark.parametrize("late", [ValueError("late"), math.nan])
def test_those_that_run_are_asked_again_too_and_a_failure_for_one_changes_nothing(late):
    """By their keys it is chosen who gives up pages."""

    def failing(request, now, view):
        if now > 2 and request.request_id == "bad" and isinstance(late, Exception):
            raise late
        return (late if now > 2 and request.request_id == "bad" else -now - request.arrival,)

    waiting = Waiting(Policy(failing, rerank_steps=1))
    waiting.push(sequence(0, (0.0,), arrival=0.0))
    running = [sequence(1, (1.0,), arrival=1.0), sequence(2, (2.0,), arrival=2.0, request_id="bad")]
    waiting.rerank(view(2.0), running)
    assert [each.key for each in (*waiting, *running)] == [(-2.0,), (-3.0,), (-4.0,)]
    with pytest.raises(UserFunctionError, match=r"failing.*('bad'.*late|nan.*'bad')"):
        waiting.rerank(view(3.0), running)
    assert [each.key for each in (*waiting, *running)] == [(-2.0,), (-3.0,), (-4.0,)]


def admitted(policy, lengths, overtaking=0):
    """The order in which requests of these lengths are admitted, where all wait."""
    waiting = Waiting(policy, overtaking)
    for seq_id, length in enumerate(lengths):
        arrival = float(seq_id)
        asked = request([1], length, arrival=arrival)
        waiting.push(Sequence(seq_id, asked, [1], 1, key=policy.key(asked, 0.0, view())))
    order = []
    while (first := waiting.first()) is not None:
        waiting.pop(first)
        order.append(first.seq_id)
    return order


def test_ageing_alternates_by_work():
    """The long one came first. Without ageing it is last; with it, it goes after one short one: then that is
    ahead by its work. After it, three short ones more have their turn before any first comer."""
    lengths = [30, 10, 9, 8, 7]
    assert admitted(POLICIES["sjf"], lengths) == [4, 3, 2, 1, 0]
    aged = POLICIES["sjf"]._replace(ageing=True)
    assert admitted(aged, lengths) == [4, 0, 3, 1, 2]
    assert admitted(aged, lengths, overtaking=14) == [4, 3, 0, 2, 1]
    assert admitted(aged, lengths, overtaking=OVERTAKING) == [4, 3, 2, 1, 0]


def test_ageing_leaves_order_of_arrival_alone():
    assert admitted(POLICIES["fcfs"]._replace(ageing=True), [3, 9, 1]) == [0, 1, 2]
