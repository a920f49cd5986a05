"""A runner that computes nothing and takes time: a simulation's device, on a virtual clock.

Engine and scheduler are those of a real run. Times are a real run's as far as costs are: the device works on
one step after the other, and the host's work passes while it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jbatch.engine.intake import Intake
from jbatch.host.request import Request
from jbatch.sampler import Sampler
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepInput
from jbatch.seam.step_output import StepOutput
from jbatch.seam.tenancy import Tenancy
from jbatch.sim.clock import VirtualClock
from jbatch.sim.cost import Cost
from jbatch.sim.load import Load, RowLoads


class TimedHandle(NamedTuple):
    """A step under way."""

    output: StepOutput
    ready: float  # when the device has it


class TimedRunner:
    """`submit` and `collect` as the real runner has them; both move the clock. All of the host's work for a
    step passes with `submit`: that for the result of the one before, too.

    Args:
      output_lens: see RowLoads.
      loads: where each step's load is noted, if anywhere.
    """

    samplers = tuple(Sampler)
    counts_all = False

    def __init__(
        self,
        shape: StateShape,
        cost: Cost,
        clock: VirtualClock,
        output_lens: Mapping[int, int] | None = None,
        loads: list[Load] | None = None,
    ):
        self.shape, self.tenancy = shape, Tenancy()
        self._cost, self._clock = cost, clock
        self._rows, self._loads = RowLoads(shape, output_lens), loads
        self._free = 0.0  # when the device is through with what it was given

    def submit(self, step: StepInput) -> TimedHandle:
        """Begin a step, once the device is free."""
        load, output = self._rows.take(step)
        if self._loads is not None:
            self._loads.append(load)
        host = self._cost.host
        self._clock.advance(host.step_s + host.slot_s * load.slots)
        self._free = max(self._free, self._clock()) + self._cost.step_s(load)
        return TimedHandle(output, self._free)

    def is_ready(self, handle: TimedHandle) -> bool:
        """Whether a step has ended by now."""
        return handle.ready <= self._clock()

    def collect(self, handle: TimedHandle) -> tuple[StepOutput, float]:
        """Wait for a step's output; with it, when it was ready."""
        self._clock.advance_to(handle.ready)
        return handle.output, handle.ready


class TimedIntake(Intake):
    """An intake whose work takes time, too."""

    def __init__(self, cost: Cost, clock: VirtualClock, **options: Any):
        super().__init__(clock=clock, **options)
        self._request_s, self._virtual = cost.host.request_s, clock

    def request(self, *args: Any, **kwargs: Any) -> Request:
        """As Intake has it."""
        self._virtual.advance(self._request_s)
        return super().request(*args, **kwargs)
