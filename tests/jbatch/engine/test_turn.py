"""Threads at one engine: one steps it, others add and abort, and nobody takes what is another's."""

import contextlib
import random
import sys
import threading

import pytest

from jbatch.engine.turn import STEP, Turn
from jbatch.errors import JBatchError
from jbatch.host.limits import StepLimits
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers import tiny_engine
from tests.helpers.invariants import check_invariants
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.sizes import sized
from tests.helpers.tiny_engine import drain

PARAMS = SamplingParams(max_tokens=20)


class Slow(FakeRunner):
    """Each step takes until it is let go."""

    def __init__(self, shape):
        super().__init__(shape, VOCAB_SIZE)
        self.entered, self.go = threading.Event(), threading.Event()

    def collect(self, handle):
        self.entered.set()
        assert self.go.wait(60)
        return super().collect(handle)


def make_engine(runner=FakeRunner, limits=None, **config):
    config = scheduler_config(**config)
    built = runner(config.shape) if runner is not FakeRunner else FakeRunner(config.shape, VOCAB_SIZE)
    return tiny_engine.make_engine(Scheduler(config, limits), built, vocab_size=VOCAB_SIZE, overlap=False)


def expected(prompt, max_tokens=20):
    return continuation(prompt, max_tokens, VOCAB_SIZE)


@pytest.fixture
def switching():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@contextlib.contextmanager
def in_a_step(engine):
    """Another thread's step is under way. What it gave is in the list, afterwards."""
    steps = []
    thread = threading.Thread(target=lambda: steps.append(engine.step()))
    thread.start()
    assert engine.runner.entered.wait(60)
    yield steps
    engine.runner.go.set()
    thread.join(60)


# The turn itself.


def test_a_second_call_is_told_and_the_next_one_goes_in():
    turn = Turn()
    assert turn.take(STEP, sys._getframe())
    refused = []
    thread = threading.Thread(target=lambda: refused.append(turn.take(STEP, sys._getframe())))
    thread.start()
    thread.join(60)
    assert refused == [False] and not turn.take("add", sys._getframe())
    turn.leave()
    assert turn.take("add", sys._getframe())


def test_a_call_that_could_not_leave_holds_nobody_up():
    turn = Turn()

    def interrupted():
        assert turn.take(STEP, sys._getframe())

    interrupted()
    assert turn.take(STEP, sys._getframe())


def test_a_call_that_is_short_is_waited_for():
    turn, inside, go, took = Turn(), threading.Event(), threading.Event(), []

    def short():
        assert turn.take("add", sys._getframe())
        inside.set()
        assert go.wait(60)
        turn.leave()

    def step():
        took.append(turn.take(STEP, sys._getframe()))

    first, second = threading.Thread(target=short), threading.Thread(target=step)
    first.start()
    assert inside.wait(60)
    second.start()
    assert not took
    go.set()
    second.join(60)
    assert took == [True]


# The engine.


def test_a_second_step_is_refused_and_the_first_goes_on():
    engine = make_engine(Slow)
    engine.add_request("a", [1, 2], PARAMS)
    with in_a_step(engine), pytest.raises(JBatchError, match="a step of this engine is under way"):
        engine.step()
    assert drain(engine)["a"].outputs[0].token_ids == expected([1, 2])


def test_what_another_thread_asks_for_during_a_step_is_done_before_the_next():
    engine = make_engine(Slow)
    engine.add_request("a", [1, 2], PARAMS)
    engine.add_request("b", [3], PARAMS)
    with in_a_step(engine) as steps:
        engine.add_request("c", [4, 5], PARAMS)
        engine.abort("a")
        with pytest.raises(JBatchError, match="id has not ended"):
            engine.add_request("c", [4, 5], PARAMS)
        assert engine.num_unfinished == 3 and engine.has_unfinished and engine.summary.num_steps == 0
    assert [new.token_ids for new in steps[0].progress] == [expected([1, 2])[:1], expected([3])[:1]]
    outputs = drain(engine)
    assert outputs["a"].outputs[0].finish_reason == FinishReason.ABORT
    assert outputs["b"].outputs[0].token_ids == expected([3])
    assert outputs["c"].outputs[0].token_ids == expected([4, 5])
    check_invariants(engine.scheduler)


def test_one_steps_while_many_add_and_abort(switching):
    engine, num, stop = make_engine(num_rows=3, num_pages=12), sized(40, 400), threading.Event()
    prompts = {f"{who}-{idx}": [who, idx % 97] for who in range(4) for idx in range(num)}
    errors = []

    def ask(who):
        rng = random.Random(who)
        try:
            for idx in range(num):
                engine.add_request(f"{who}-{idx}", [who, idx % 97], PARAMS)
                if rng.random() < 0.3:
                    engine.abort(f"{rng.randrange(4)}-{rng.randrange(idx + 1)}")
                assert engine.num_unfinished <= 4 * num and engine.summary.num_steps >= 0
        except BaseException as error:
            errors.append(error)

    ended = []

    def step():
        while not stop.is_set() or engine.has_unfinished:
            ended.extend(engine.step().outputs)

    threads = [threading.Thread(target=ask, args=(who,)) for who in range(4)]
    stepper = threading.Thread(target=step)
    for thread in (stepper, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    stepper.join(60)
    assert not errors and sorted(output.request_id for output in ended) == sorted(prompts)
    for output in ended:
        (sample,), right = output.outputs, expected(prompts[output.request_id])
        aborted = sample.finish_reason == FinishReason.ABORT
        assert sample.token_ids == (right[: len(sample.token_ids)] if aborted else right)
    check_invariants(engine.scheduler)
    assert engine.scheduler.pool.num_used == 0


def test_two_threads_that_step_lose_and_mix_up_nothing(switching):
    """Where they meet, one is refused; where they take turns, each output goes to one of them."""
    engine, ended = make_engine(num_rows=3), []
    for idx in range(60):
        engine.add_request(str(idx), [1, idx], PARAMS)

    def step():
        while engine.has_unfinished:
            with contextlib.suppress(JBatchError):
                ended.extend(engine.step().outputs)

    threads = [threading.Thread(target=step) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(int(output.request_id) for output in ended) == list(range(60))
    for output in ended:
        assert output.outputs[0].token_ids == expected([1, int(output.request_id)])


def test_a_function_that_a_step_calls_may_abort_but_not_step():
    said = []

    def limits(view):
        if not said:
            engine.abort("a")
            with pytest.raises(JBatchError, match="a step of this engine is under way") as refused:
                engine.step()
            said.append(str(refused.value))
        return StepLimits(64, 4)

    engine = make_engine(limits=limits)
    engine.add_request("a", [1, 2], PARAMS)
    engine.add_request("b", [3], PARAMS)
    outputs = drain(engine)
    assert said and outputs["a"].outputs[0].finish_reason == FinishReason.ABORT
    assert outputs["b"].outputs[0].token_ids == expected([3])
