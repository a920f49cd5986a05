"""Routers, by a pencil."""

import pytest

from jbatch.errors import ConfigError
from jbatch.host.router import EngineLoad, PrefixAffinity, router_of
from tests.helpers.schedules import request

IDLE = EngineLoad(0, 0.0)


def routed(name, loads, **fields):
    return router_of(name).route(request([1] * 10, 10, **fields), loads)


def test_round_robin():
    router = router_of("round-robin")
    assert [router.route(request([1], 1), [IDLE] * 3) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_least_tokens():
    assert routed("least-tokens", [EngineLoad(1, 9.0), EngineLoad(7, 8.0), EngineLoad(1, 9.0)]) == 1
    assert routed("least-tokens", [IDLE, IDLE]) == 0


def test_predicted_goes_by_speed_and_length():
    """20 tokens more: 40 / 2 against 30 / 1, and 120 / 2 against 30 / 1."""
    assert routed("predicted", [EngineLoad(1, 10.0), EngineLoad(1, 20.0, 2.0)]) == 1
    assert routed("predicted", [EngineLoad(1, 10.0), EngineLoad(1, 100.0, 2.0)]) == 0
    loads = [EngineLoad(1, 0.0), EngineLoad(1, 30.0, 4.0)]
    assert (routed("predicted", loads), routed("predicted", loads, predicted_len=0)) == (1, 0)


def test_the_same_beginning_goes_to_the_same_engine():
    router = PrefixAffinity()
    prompts = [[stem] * 64 + [own] for stem in range(40) for own in range(3)]
    places = [router.route(request(prompt, 5), [IDLE] * 4) for prompt in prompts]
    assert all(len(set(places[begin : begin + 3])) == 1 for begin in range(0, 120, 3))
    assert set(places) == set(range(4))
    salted = [router.route(request([1] * 64, 5, cache_salt=str(salt)), [IDLE] * 4) for salt in range(20)]
    assert len(set(salted)) > 1


def test_affinity_gives_way_to_overload():
    router, asked = PrefixAffinity(), request([5] * 64, 10)
    home = router.route(asked, [IDLE] * 3)
    loads = [IDLE] * 3
    loads[home] = EngineLoad(50, 5000.0)
    assert router.route(asked, loads) != home
    loads[home] = EngineLoad(1, 70.0)
    assert router.route(asked, loads) == home


def test_an_unknown_router_is_named():
    with pytest.raises(ConfigError, match="router='best': must be one of round-robin, least-tokens"):
        router_of("best")
