"""Time in a simulation, against a pencil."""

from typing import NamedTuple

from jbatch.engine.intake import Asked
from jbatch.host.pack import pack
from jbatch.host.plan import StepPlan
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import decode_bucket
from jbatch.seam.shape import StateShape
from jbatch.sim.clock import VirtualClock
from jbatch.sim.cost import HostCost
from jbatch.sim.timed_runner import TimedIntake, TimedRunner

SHAPE = StateShape(num_rows=2, num_pages=3, page_size=4, pages_per_seq=2)
STEP = pack(StepPlan(0, decode_bucket(2)), SHAPE)


class Constant(NamedTuple):
    device_s: float
    host: HostCost

    def step_s(self, load):
        return self.device_s


def runner_of(device_s, host_s):
    clock = VirtualClock()
    return TimedRunner(SHAPE, Constant(device_s, HostCost(step_s=host_s)), clock), clock


def test_the_host_works_while_the_device_does():
    """Device 5, host 2: the second step is submitted at 4 and begins at 7."""
    runner, clock = runner_of(5.0, 2.0)
    first, second = runner.submit(STEP), runner.submit(STEP)
    assert clock() == 4.0
    assert runner.collect(first)[1] == clock() == 7.0
    assert runner.collect(second)[1] == clock() == 12.0


def test_a_slow_host_is_what_steps_wait_for():
    runner, clock = runner_of(1.0, 3.0)
    ready = []
    handle = runner.submit(STEP)
    for _ in range(3):
        following = runner.submit(STEP)
        ready.append(runner.collect(handle)[1])
        handle = following
    assert ready == [4.0, 7.0, 10.0] and clock() == 12.0


def test_a_request_takes_time_to_take_in():
    clock = VirtualClock()
    intake = TimedIntake(Constant(0.0, HostCost(request_s=0.25)), clock, vocab_size=9, max_seq_len=8)
    for index in range(2):
        request = intake.request("a", [1], SamplingParams(max_tokens=1), Asked(index), tuple(Sampler))
        assert request.arrival == clock() == 0.25 * (index + 1)
