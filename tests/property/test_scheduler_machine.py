"""A state machine that drives the scheduler by rules, and shrinks what it breaks to a short story."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from jbatch.host.limits import StepLimits
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.outputs import FinishReason
from tests.helpers.driver import HOST_STOP, Driver
from tests.helpers.schedules import buckets, request, scheduler_config
from tests.helpers.sizes import sized


class SchedulerMachine(RuleBasedStateMachine):
    """Every rule ends with all invariants checked, by the driver."""

    @initialize(
        mode=st.sampled_from(["continuous", "continuous", *MODES]),
        policy=st.sampled_from(list(POLICIES)),
        num_rows=st.sampled_from([2, 3, 4, 1]),
        num_pages=st.sampled_from([6, 9, 12, 3]),
        chunk=st.sampled_from([8, 24, 48]),
        depth=st.sampled_from([1, 2, 0]),
        caches=st.booleans(),
        limits=st.none() | st.none() | st.builds(StepLimits, st.sampled_from([4, 5, 16]), st.integers(1, 4)),
    )
    def build(self, mode, policy, num_rows, num_pages, chunk, depth, caches, limits):
        config = scheduler_config(
            mode,
            policy,
            num_rows=num_rows,
            num_pages=num_pages,
            page_size=4,
            max_model_len=32,
            buckets=buckets(sorted({8, chunk}), range(1, num_rows + 1)),
            enable_prefix_caching=caches,
        )
        self.driver = Driver(config, depth, limits and (lambda view: limits))
        self.room = self.driver.scheduler.max_seq_len

    @rule(
        count=st.integers(1, 3),
        sampled=st.booleans(),
        prompt_len=st.sampled_from([1, 3, 8, 20, 31]),
        max_tokens=st.sampled_from([31, 12, 5, 2, 1]),
        stop_ids=st.just(()) | st.sets(st.integers(0, 96), max_size=3).map(tuple),
        min_tokens=st.integers(0, 2),
        key=st.integers(0, 2),
    )
    def submit(self, count, sampled, prompt_len, max_tokens, stop_ids, min_tokens, key):
        prompt_len = min(prompt_len, self.room - 1)
        max_tokens = min(max_tokens, self.room - prompt_len)
        prompt = [7 * i % 97 for i in range(prompt_len)]
        keys = {"arrival": key, "priority": key, "predicted_len": key}
        for _ in range(1 if sampled else count):
            asked = request(prompt, max_tokens, stop_ids, min(min_tokens, max_tokens), **keys)
            self.driver.submit(asked, n=count if sampled else 1)

    @rule(count=st.sampled_from([1, 2, 3, 5]))
    def step(self, count):
        for _ in range(count):
            self.driver.step()

    @precondition(lambda self: self.driver.sequences)
    @rule(which=st.integers(0, 99))
    def abort(self, which):
        """Whatever it is doing: waiting, in flight, ended, aborted before."""
        sequences = self.driver.sequences
        self.driver.end(sequences[which % len(sequences)], FinishReason.ABORT)

    @precondition(lambda self: self.driver.scheduler.running)
    @rule(which=st.integers(0, 99))
    def host_stop(self, which):
        running = self.driver.scheduler.running
        self.driver.end(running[which % len(running)], FinishReason.STOP, HOST_STOP)

    @rule()
    def update(self):
        """Weights change under whatever runs."""
        self.driver.update()

    @precondition(lambda self: not self.driver.scheduler.num_waiting)
    @rule()
    def drain(self):
        self.driver.drain()
        self.driver.check_end()

    def teardown(self):
        if hasattr(self, "driver"):
            self.driver.drain()
            self.driver.check_end()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=sized(60, 300),
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
