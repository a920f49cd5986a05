"""A state machine of two engines on one device state, with threads, aborts, failing functions and steps.

Every request that was taken in ends once, with the tokens that its definition gives.
"""

import contextlib
import itertools
import threading

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jbatch.engine.driver import Driver
from jbatch.errors import JBatchError, RequestError, UserFunctionError
from jbatch.host.limits import StepLimits
from jbatch.host.policy import Policy
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import continuation
from tests.helpers import tiny_engine
from tests.helpers.driver import AgeingRunner
from tests.helpers.invariants import check_invariants
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.sizes import sized

BAD_KEYS = {90: ("x",), 91: (float("nan"),), 92: 3, 93: ZeroDivisionError()}  # by a prompt's first token
ENGINES = st.integers(0, 1)
PROMPTS = st.lists(st.integers(0, 96), min_size=1, max_size=8)
BESIDE = st.lists(st.sampled_from(["add", "abort", "step", "other", "generate", "read"]), max_size=4)


def policy(request, now, view):
    key = BAD_KEYS.get(request.prompt_token_ids[0], (request.priority,))
    if isinstance(key, Exception):
        raise key
    return key


class Gate(AgeingRunner):
    """Something may happen during a step, and a step may fail."""

    def __init__(self, shape):
        super().__init__(shape, VOCAB_SIZE)
        self.during, self.failing = None, None

    def submit(self, step):
        if self.failing == "submit":
            self.failing = None
            raise ZeroDivisionError("a device")
        return super().submit(step)

    def collect(self, handle):
        during, self.during = self.during, None
        if during is not None:
            during()
        if self.failing == "collect":
            self.failing = None
            raise KeyboardInterrupt
        return super().collect(handle)


def in_a_thread(function):
    """What another thread does, and raises."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for ever"
    if errors:
        raise errors[0]


class EngineMachine(RuleBasedStateMachine):
    @initialize(num_rows=st.integers(1, 3), num_pages=st.sampled_from([6, 9, 30]), overlap=st.booleans())
    def build(self, num_rows, num_pages, overlap):
        config = scheduler_config(num_rows=num_rows, num_pages=num_pages, page_size=4, max_model_len=16)
        config = config._replace(policy=Policy(policy))
        self.runner, self.limits_fail = Gate(config.shape), False
        self.engines = [
            tiny_engine.make_engine(
                Scheduler(config, self.limits), self.runner, vocab_size=VOCAB_SIZE, overlap=overlap
            )
            for _ in range(2)
        ]
        self.ids = map(str, itertools.count())
        self.open = [{}, {}]  # what each engine has still to hand out
        self.aborted, self.failed = set(), set()

    def limits(self, view):
        if self.limits_fail:
            self.limits_fail = False
            raise ValueError("a limit")
        return StepLimits(64, 3)

    # What callers do, and what must come of it.

    def add(self, which, prompt, n=1, max_tokens=5):
        request_id, params = next(self.ids), SamplingParams(n=n, max_tokens=max_tokens)
        taken = self.engines[1 - which].num_unfinished
        try:
            self.engines[which].add_request(request_id, prompt, params, priority=len(prompt) % 2)
        except RequestError as error:
            assert error.field == "policy" and prompt[0] in BAD_KEYS
        except JBatchError as error:
            assert taken and "another engine has" in str(error)
        else:
            assert not taken and prompt[0] not in BAD_KEYS
            self.open[which][request_id] = (prompt, params)

    def abort(self, which, number):
        names = sorted(self.open[which])
        if names:
            self.aborted.add(names[number % len(names)])
            self.engines[which].abort(names[number % len(names)])

    def take(self, which, outputs):
        for output in outputs:
            prompt, params = self.open[which].pop(output.request_id)  # each once, and of this engine
            for sample in output.outputs:
                right = continuation(prompt, params.max_tokens, VOCAB_SIZE, sample_idx=sample.index)
                if sample.finish_reason == FinishReason.LENGTH:
                    assert sample.token_ids == right
                else:
                    known = self.aborted if sample.finish_reason == FinishReason.ABORT else self.failed
                    assert output.request_id in known
                    assert sample.token_ids == right[: len(sample.token_ids)]

    def advance(self, which):
        self.take(which, self.engines[which].step().outputs)

    def generate(self, which, prompts):
        """As LLM does."""
        engine, params = self.engines[which], SamplingParams(max_tokens=3)
        taken = any(each.num_unfinished for each in self.engines)
        driver = Driver(engine, "generate")
        try:
            driver.begin()
            assert not any(each.num_unfinished for each in self.engines)  # aborts of before are done
            for prompt in prompts:
                if prompt[0] not in BAD_KEYS:
                    request_id = next(self.ids)
                    self.open[which][request_id] = (prompt, params)
                    driver.unfinished.add(request_id)
                    driver.call(engine.add_request, request_id, prompt, params)
            while driver.unfinished:
                with pytest.raises(JBatchError, match="generate has the engine"):
                    engine.step()
                with contextlib.suppress(UserFunctionError):
                    self.take(which, driver.step().outputs)
        except JBatchError as error:
            assert taken, error
        finally:
            driver.leave()

    # The rules.

    @rule(which=ENGINES, prompt=PROMPTS, n=st.integers(1, 2), max_tokens=st.sampled_from([5, 1, 8, 0]))
    def submit(self, which, prompt, n, max_tokens):
        self.add(which, prompt, n, max_tokens)

    @rule(which=ENGINES, prompt=PROMPTS)
    def submit_from_a_thread(self, which, prompt):
        in_a_thread(lambda: self.add(which, prompt))

    @rule(which=ENGINES, number=st.integers(0, 9), thread=st.booleans())
    def end(self, which, number, thread):
        if thread:
            in_a_thread(lambda: self.abort(which, number))
        else:
            self.abort(which, number)

    @rule(which=ENGINES, count=st.integers(1, 3))
    def step(self, which, count):
        for _ in range(count):
            self.advance(which)

    @precondition(lambda self: any(engine.num_unfinished for engine in self.engines))
    @rule(prompt=PROMPTS, number=st.integers(0, 9), beside=BESIDE, thread=st.booleans())
    def step_while_another_thread_is_busy(self, prompt, number, beside, thread):
        """All of it during one step, from another thread or within the step itself."""
        which = int(not self.engines[0].num_unfinished)
        engine = self.engines[which]

        def act():
            for what in beside:
                if what == "add":
                    self.add(which, prompt)
                elif what == "abort":
                    self.abort(which, number)
                elif what == "step":
                    with pytest.raises(JBatchError, match="a step of this engine is under way"):
                        engine.step()
                elif what == "other" and engine.num_unfinished:
                    self.add(1 - which, prompt)
                elif what == "generate" and engine.num_unfinished:
                    self.generate(which, [prompt])
                elif what == "read":
                    assert engine.num_unfinished <= len(self.open[which]) and engine.summary.num_steps >= 0

        self.runner.during = (lambda: in_a_thread(act)) if thread else act
        self.advance(which)
        self.runner.during = None

    @precondition(lambda self: any(engine.num_unfinished for engine in self.engines))
    @rule(how=st.sampled_from(["submit", "collect", "limits"]))
    def fail(self, how):
        which = int(not self.engines[0].num_unfinished)
        before = set(self.open[which])
        self.limits_fail = how == "limits"
        self.runner.failing = None if self.limits_fail else how
        with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt, UserFunctionError):
            self.advance(which)
        if how != "limits" and self.runner.failing is None:
            self.failed |= before
        self.runner.failing, self.limits_fail = None, False

    @rule(which=ENGINES, mode=st.sampled_from(["retract", "wait", "abort"]), thread=st.booleans())
    def update(self, which, mode, thread):
        """Weights change, by way of either engine; in the fake device nothing of older ones is read."""

        def replace():
            self.runner.tenancy.weights.count(None)
            self.runner.num_updates += 1

        if mode == "abort":
            self.aborted |= self.open[which].keys()
        if thread:
            in_a_thread(lambda: self.engines[which].update(replace, mode))
        else:
            self.engines[which].update(replace, mode)
        assert mode != "wait" or not self.engines[which].num_unfinished

    @rule(which=ENGINES, prompts=st.lists(PROMPTS, max_size=3))
    def call(self, which, prompts):
        self.generate(which, prompts)

    @invariant()
    def all_is_well(self):
        for which, engine in enumerate(getattr(self, "engines", ())):
            check_invariants(engine.scheduler)
            assert engine.num_unfinished <= len(self.open[which])
            assert engine.has_unfinished or not self.open[which]

    def teardown(self):
        for which, engine in enumerate(getattr(self, "engines", ())):
            while engine.has_unfinished:
                self.advance(which)
            assert not self.open[which] and engine.scheduler.pool.num_used == 0
            assert not engine.requests.samples and not engine.requests.unfinished and engine.driver is None


TestEngines = EngineMachine.TestCase
TestEngines.settings = settings(
    max_examples=sized(20, 400),
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
