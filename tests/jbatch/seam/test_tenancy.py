"""A device state holds one engine's requests, in the process that made it."""

import gc
import os
import signal
import time

import pytest

from jbatch.engine.driver import Driver
from jbatch.errors import JBatchError
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers import tiny_engine
from tests.helpers.replicas import make_replicas
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tiny_engine import drain

PARAMS = SamplingParams(max_tokens=5)
CONFIG = scheduler_config()


def engine_on(runner):
    return tiny_engine.make_engine(Scheduler(CONFIG), runner, vocab_size=VOCAB_SIZE)


def expected(prompt):
    return continuation(prompt, 5, VOCAB_SIZE)


def test_a_second_engine_is_refused_and_the_first_goes_on():
    runner = FakeRunner(CONFIG.shape, VOCAB_SIZE)
    first, second = engine_on(runner), engine_on(runner)
    first.add_request("a", [1, 2], PARAMS)
    for _ in range(3):
        with pytest.raises(JBatchError, match="another engine has 1 unfinished requests"):
            second.add_request("b", [3], PARAMS)
        with pytest.raises(JBatchError, match="another engine has 1 unfinished requests"):
            Driver(second, "generate").begin()
        assert not second.has_unfinished and second.driver is None
        first.step()
    assert drain(first)["a"].outputs[0].token_ids == expected([1, 2])
    second.add_request("b", [3], PARAMS)
    with pytest.raises(JBatchError, match="another engine has 1 unfinished requests"):
        first.add_request("c", [4], PARAMS)
    assert drain(second)["b"].outputs[0].token_ids == expected([3])


def test_engines_on_runners_of_their_own_run_at_once():
    engines = [engine_on(FakeRunner(CONFIG.shape, VOCAB_SIZE)) for _ in range(2)]
    for idx, engine in enumerate(engines):
        engine.add_request("a", [1, idx], PARAMS)
    while any(engine.has_unfinished for engine in engines):
        for idx, engine in enumerate(engines):
            for output in engine.step().outputs:
                assert output.outputs[0].token_ids == expected([1, idx])


def test_an_engine_that_is_gone_or_aborted_holds_nobody_up():
    runner = FakeRunner(CONFIG.shape, VOCAB_SIZE)
    engine_on(runner).add_request("a", [1, 2], PARAMS)
    gc.collect()
    second, third = engine_on(runner), engine_on(runner)
    second.add_request("b", [3], PARAMS)
    second.step()
    second.abort("b")
    third.add_request("c", [4], PARAMS)
    second.step()  # hands out what was aborted
    assert drain(third)["c"].outputs[0].token_ids == expected([4])


@pytest.mark.parametrize("several", [False, True])
def test_a_closed_engine_says_so(several):
    """Also one that had requests; who drove it can leave."""
    engine = make_replicas() if several else engine_on(FakeRunner(CONFIG.shape, VOCAB_SIZE))
    driver = Driver(engine, "generate")
    driver.begin()
    driver.unfinished.add("a")
    driver.call(engine.add_request, "a", [1, 2], PARAMS)
    driver.step()
    for each in getattr(engine, "engines", [engine]):
        each.tenancy.closed = True
    driver.leave()
    engine.abort("a")
    calls = (
        engine.step,
        lambda: engine.add_request("b", [1, 2], PARAMS),
        engine.reset_prefix_cache,
        Driver(engine, "generate").begin,
    )
    for call in calls:
        with pytest.raises(JBatchError, match=r"^this LLM was closed, and its memory is free: make a new"):
            call()


@pytest.mark.filterwarnings("ignore:.*fork:")
def test_a_fork_gets_an_error_at_once():
    """While the parent's driver has the engine, and holds its locks."""
    engine = engine_on(FakeRunner(CONFIG.shape, VOCAB_SIZE))
    driver = Driver(engine, "generate")
    driver.begin()
    calls = (
        engine.step,
        lambda: engine.add_request("a", [1, 2], PARAMS),
        lambda: engine.abort("a"),
        Driver(engine, "generate").begin,
    )
    with engine.tenancy.lock:
        child = os.fork()
        if not child:
            refused = 0
            try:
                for call in calls:
                    try:
                        call()
                    except JBatchError as error:
                        refused += "is a fork of it" in str(error)
                driver.leave()
            finally:
                os._exit(refused)
    status, end = (0, 0), time.monotonic() + 20
    while not status[0] and time.monotonic() < end:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not status[0]:
        os.kill(child, signal.SIGKILL)
    assert status[0] and os.waitstatus_to_exitcode(status[1]) == len(calls)
    driver.leave()
