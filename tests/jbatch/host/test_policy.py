"""Policies are sort keys, modes are admission rules."""

import math

import numpy as np
import pytest

from jbatch.errors import ConfigError, RequestError, UserFunctionError
from jbatch.host.limits import SchedulerView
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES, Policy, key_of, may_start, new_key_of, policy_of
from jbatch.host.request import Sequence
from tests.helpers.schedules import request


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


VIEW = SchedulerView(5.0, 1, 2, 3)
NO_KEYS = [("x",), (math.nan,), 3, None, [1], "1", (None,), (1, (2,)), (np.zeros(2),), (1j,)]


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
    assert key_of(Policy(lambda request, now, view: key), request([1], 1), VIEW) == plain


def test_a_policy_sees_the_time_and_what_there_is():
    policy = Policy(lambda request, now, view: (now, view.num_waiting, view.num_running, view.num_free_pages))
    assert key_of(policy, request([1], 1), VIEW) == new_key_of(policy, request([1], 1), VIEW) == (5, 1, 2, 3)


@pytest.mark.parametrize("key", [*NO_KEYS, (10**400, 0.5, "")])
def test_a_key_that_cannot_be_sorted_is_refused_by_name(key):
    def mine(request, now, view):
        return key

    with pytest.raises(RequestError, match=r"^policy='mine': it must give a tuple of numbers"):
        key_of(Policy(mine), request([1], 1), VIEW)
    with pytest.raises(UserFunctionError, match=r"policy.*mine.*: it must give a tuple of numbers.*'r'"):
        new_key_of(Policy(mine), request([1], 1), VIEW)


def failing(request, now, view):
    return (1 / 0,)


def test_a_policy_that_fails_refuses_its_request():
    with pytest.raises(RequestError, match="policy='failing': it fails for this request: ZeroDivisionError"):
        key_of(Policy(failing), request([1], 1), VIEW)
    with pytest.raises(UserFunctionError, match=r"policy.*failing.*: it fails for 'r': ZeroDivisionError"):
        new_key_of(Policy(failing), request([1], 1), VIEW)
    with pytest.raises(KeyboardInterrupt):
        key_of(Policy(interrupted), request([1], 1), VIEW)


def test_a_policy_cannot_change_a_request():
    def mine(request, now, view):
        request.priority = -9
        return (0,)

    with pytest.raises(RequestError, match="policy='mine': it fails for this request: FrozenInstanceError"):
        key_of(Policy(mine), request([1], 1), VIEW)


def interrupted(request, now, view):
    raise KeyboardInterrupt


def test_a_function_becomes_a_policy_whose_keys_may_change():
    assert policy_of(failing) == Policy(failing) and Policy(failing).rerank_steps > 0
    assert policy_of(POLICIES["sjf"]) is POLICIES["sjf"]
    assert policy_of(lambda *arguments: (0,)).name == "<lambda>"


@pytest.mark.parametrize("function", [lambda request: (0,), lambda: (0,), lambda a, b, c, d: (0,)])
def test_a_function_of_other_arguments_is_refused_by_name(function):
    with pytest.raises(ConfigError, match=r"policy='<lambda>': it is called as <lambda>\(req"):
        policy_of(function)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rerank_steps": "x"}, "rerank_steps='x': must be an integer from 0 to"),
        ({"rerank_steps": -1}, "rerank_steps=-1: must be an integer from 0 to"),
        ({"ageing": "yes"}, "ageing='yes': must be true or false"),
        ({"key": None}, "policy=None: its key must be a function"),
    ],
)
def test_a_policy_of_other_fields_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        policy_of(POLICIES["fair"]._replace(**changes))
