"""An engine that an interrupt or a failing step cuts off at any place works on."""

import contextlib
import random

import pytest

from jbatch.host.policy import MODES
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers.interrupts import Interrupts
from tests.helpers.invariants import check_invariants
from tests.helpers.pencil_engine import PROMPT, TOKENS, make_engine
from tests.helpers.schedules import VOCAB_SIZE
from tests.helpers.sizes import sized
from tests.helpers.tiny_engine import drain

# An interrupt at any place.


def on_the_host(file, function):
    return "/jbatch/engine/" in file or "/jbatch/host/" in file


def interrupted_run(number, second=None):
    """An interrupt at the number-th line of the host, and another so many lines later; whether there were so
    many. Ends with an engine that works."""
    engine = make_engine(num_rows=2)
    texts = {str(idx): continuation([1, idx], 3 + idx, VOCAB_SIZE) for idx in range(4)}
    ended = []

    def go_on():
        while engine.has_unfinished:
            ended.extend(engine.step().outputs)

    with contextlib.suppress(KeyboardInterrupt), Interrupts(number, on_the_host) as first:
        for idx in range(4):
            params = SamplingParams(max_tokens=3 + idx, n=2, stop=["xyz"])
            engine.add_request(str(idx), [1, idx], params)
        ended.extend(engine.step().outputs)
        engine.abort("1")
        go_on()
    if second is not None:
        with contextlib.suppress(KeyboardInterrupt), Interrupts(second, on_the_host):
            engine.add_request("after", PROMPT, SamplingParams(max_tokens=3))
            engine.abort("2")
            go_on()
    go_on()
    request_ids = [output.request_id for output in ended if output.request_id != "after"]
    assert len(set(request_ids)) == len(request_ids), "an output came twice"
    for output in ended:
        if output.request_id != "after" and not output.error and output.request_id not in "12":
            assert output.outputs[0].token_ids == texts[output.request_id]
    check_invariants(engine.scheduler)
    assert (
        engine.scheduler.pool.num_used == 0 and not engine.requests.samples and not engine.requests.unfinished
    )
    engine.add_request("last", PROMPT, SamplingParams(max_tokens=3))
    assert drain(engine)["last"].outputs[0].token_ids == TOKENS[:3]
    return first.raised


def test_an_interrupt_at_any_line_leaves_a_working_engine():
    """Also a second one, while the engine is mended. No output that was there is lost or comes twice."""
    number = 0
    while interrupted_run(number):
        number += sized(41, 1)
    assert number > 1500


@pytest.mark.parametrize("seed", range(sized(60, 3000)))
def test_two_interrupts_leave_a_working_engine(seed):
    rng = random.Random(seed)
    interrupted_run(rng.randrange(1500), rng.choice((rng.randrange(60), rng.randrange(600))))


# A step that fails, and fields that a policy sorts by.


class Failing:
    """A runner whose call number `at` of `method` raises."""

    samplers, counts_all = FakeRunner.samplers, False

    def __init__(self, runner, method, at):
        self._runner, self._method, self._left = runner, method, at
        self.tenancy = runner.tenancy

    def submit(self, step):
        return self._call("submit", step)

    def collect(self, handle):
        return self._call("collect", handle)

    def _call(self, method, argument):
        if method == self._method:
            self._left -= 1
            if self._left < 0:
                self._left = 10**9
                raise KeyboardInterrupt
        return getattr(self._runner, method)(argument)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["submit", "collect"])
@pytest.mark.parametrize("at", range(6))
def test_where_a_step_fails_every_request_ends_once_and_nothing_is_left(mode, method, at):
    engine = make_engine(mode)
    engine.pipeline.runner = Failing(engine.runner, method, at)
    for idx in range(6):
        engine.add_request(str(idx), [1, idx], SamplingParams(max_tokens=1 + idx))
    ended = []
    with pytest.raises(KeyboardInterrupt):
        while True:
            ended += engine.step().outputs
    while engine.has_unfinished:
        ended += engine.step().outputs
    assert sorted(output.request_id for output in ended) == [str(idx) for idx in range(6)]
    for output in ended:
        completion = output.outputs[0]
        if output.error is None:
            assert completion.token_ids == continuation(
                [1, int(output.request_id)], 1 + int(output.request_id), VOCAB_SIZE
            )
        else:
            assert completion.finish_reason == "error" and "a step failed" in output.error
    assert engine.scheduler.pool.num_used == 0
    engine.add_request("after", PROMPT, SamplingParams(max_tokens=3))
    assert drain(engine)["after"].outputs[0].token_ids == TOKENS[:3]
