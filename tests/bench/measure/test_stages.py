"""Where a request's latency goes: passes on a clock that only steps and naps move."""

import pytest

from bench.ladder.arms import ARMS
from bench.measure import measures
from bench.measure.drive import Fill, drive
from bench.workloads.workload import WorkItem, Workload
from jbatch.engine.engine import Engine
from jbatch.host.limits import StepLimits
from jbatch.host.scheduler import Scheduler
from tests.helpers.fake_subject import FakeSubject

STEP_S, NAP_S = 1.0, 0.25


class Clock:
    """Stands still but for steps, of a second each, and naps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def measure(arm, *requests, size=2, timeout_s=100.0, budget=2048, prompt_len=8):
    """The parts of each request's E2EL in seconds. A request: (arrival, output_len)."""
    clock, subject = Clock(), FakeSubject(max_num_seqs=4, batch_wait_timeout_s=timeout_s, overlap=False)
    built = subject.new_engine(ARMS[arm], size)

    scheduler = Scheduler(built.scheduler.config, lambda view: StepLimits(budget, size))

    class Stepping:
        samplers, counts_all = built.runner.samplers, built.runner.counts_all
        tenancy = built.runner.tenancy

        def submit(self, step):
            return built.runner.submit(step)

        def collect(self, handle):
            clock.now += STEP_S
            return built.runner.collect(handle)

    def sleep(_):
        clock.now += NAP_S

    engine = Engine(scheduler, Stepping(), built.intake, overlap=False, clock=clock, sleep=sleep)
    items = tuple(
        WorkItem((3 + at,) * prompt_len, length, arrival) for at, (arrival, length) in enumerate(requests)
    )
    run = drive(engine, Workload("made up", items, 0, {}), clock=clock)
    if arm == "static-full":
        run = run._replace(fill=Fill(size, timeout_s))
    latencies = measures.latencies(run)
    assert sum(getattr(latencies, part).mean for part in measures.PARTS) == pytest.approx(latencies.e2el.mean)
    return [
        tuple(measures.parts(row)[part] / 1e3 for part in measures.PARTS)
        for row in measures.request_rows(run)
    ]


def test_a_full_batch():
    """The first waits 3 seconds for the second; the third, alone, until its time has come, at 10."""
    first, second, third = measure("static-full", (0.0, 3), (3.0, 1), (4.0, 2), timeout_s=6.0)
    assert first == (3.0, 0.0, 1.0, 2.0)
    assert second == (0.0, 0.0, 1.0, 0.0)
    assert third == (6.0, 0.0, 1.0, 1.0)


def test_a_batch_that_is_full_before_the_one_ahead_has_ended_waits_in_the_queue():
    """The first two run from second 0 to 6; meanwhile others come at 1 and at 3."""
    *_, third, fourth = measure("static-full", (0.0, 6), (0.0, 6), (1.0, 1), (3.0, 1))
    assert third == (2.0, 3.0, 1.0, 0.0)
    assert fourth == (0.0, 3.0, 1.0, 0.0)


def test_a_batch_that_is_late_before_the_one_ahead_has_ended_waits_in_the_queue():
    *_, third, fourth = measure("static-full", (0.0, 6), (0.0, 6), (1.0, 1), (4.0, 1), timeout_s=2.0)
    assert third == (2.0, 3.0, 1.0, 0.0)
    assert fourth == (0.0, 2.0, 1.0, 0.0), "it came when the batch was due"


def test_a_third_request_is_not_of_the_batch_that_it_sees_start():
    *_, third, fourth = measure("static-full", (0.0, 2), (0.0, 2), (0.0, 1), (5.0, 1))
    assert third == (5.0, 0.0, 1.0, 0.0) and fourth == (0.0, 0.0, 1.0, 0.0)


def test_a_batch_whose_prompts_take_several_steps_is_one_batch():
    """The first has ended before the second is planned."""
    first, second = measure("static-full", (0.0, 1), (3.0, 1), budget=16, prompt_len=16)
    assert first == (3.0, 0.0, 1.0, 0.0) and second == (0.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("arm", ["unbatched", "static", "static-padded", "continuous"])
def test_others_wait_for_nobody(arm):
    first, *others = measure(arm, (0.0, 3), (0.0, 3), (1.0, 1), (3.0, 1), size=1 if arm == "unbatched" else 2)
    assert first == (0.0, 0.0, 1.0, 2.0)
    assert all(fill == 0.0 and prefill == 1.0 for fill, _, prefill, _ in others)
    assert any(queue > 0 for _, queue, _, _ in others)
