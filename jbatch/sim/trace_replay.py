"""The decisions of a trace, made again by the scheduler itself: no model, no device."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from jbatch.engine.trace import plan_line, to_line
from jbatch.host.limits import Company, StepLimits
from jbatch.host.plan import StepPlan
from jbatch.host.request import Sequence
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.sim.trace_file import Line, Trace, followed
from jbatch.sim.trace_sequences import TraceSequences


class Repeated(NamedTuple):
    """How a trace was repeated under its own policy."""

    plans: int
    differs: Line | None  # the first plan that is another one now
    now: str = ""  # and what it is now


def repeat(trace: Trace) -> Repeated:
    """Tell a new scheduler of the same policy all that the trace's was told, in the same order.

    Raises:
      TraceError: naming the line, where it does not follow from those before it.
    """
    repeating = _Repeating(trace)
    plans = 0
    for line in trace.lines:
        with followed(trace, line):
            now = repeating.follow(line)
            plans += line.kind == "plan" and line.value["plan"] is not None
        if now is not None and now != line.raw:
            return Repeated(plans, line, now)
    return Repeated(plans, None)


class _Repeating:
    def __init__(self, trace: Trace):
        self._config = trace.config_for()
        self._limits: StepLimits | None = None  # in a trace they stand before the plan that they are of
        self._scheduler = Scheduler(self._config, lambda view: _given(self._limits))
        self._sequences, self._known = TraceSequences(trace), dict[int, Sequence]()
        self._in_flight: deque[StepPlan] = deque()

    def follow(self, line: Line) -> str | None:
        """Do what a line says; a plan's line, as it is now."""
        value = line.value[line.kind]
        if line.kind == "add":
            sequence = self._sequences.add(self._scheduler, value, keyed=True)
            self._known[sequence.seq_id] = sequence
        elif line.kind == "limits":
            self._limits = limits_of(value)
        elif line.kind == "end":
            seq_id, _, reason = value
            self._scheduler.finish(self._known[seq_id], FinishReason(reason))
        elif line.kind == "told":
            {
                "retract": self._scheduler.retract,
                "weights_changed": self._scheduler.weights_changed,
                "reset_prefix_cache": self._scheduler.reset_prefix_cache,
            }[value]()
        elif line.kind == "result":
            self._land(value)
        else:
            plan = self._scheduler.schedule(line.value["now"])
            if plan is not None:
                self._in_flight.append(plan)
            return to_line(line.number, plan_line(line.value["now"], plan))
        return None

    def _land(self, result: dict[str, Any]) -> None:
        plan = self._in_flight.popleft()
        if plan.step_idx != result["step"]:
            raise ValueError(f"the result of step {result['step']}, where that of {plan.step_idx} is next")
        ends = {place: (count, status) for place, count, status in result["short"]}
        output = self._sequences.output(plan, self._known, ends, self._config.shape)
        self._scheduler.apply(plan, output)


def _given(limits: StepLimits | None) -> StepLimits:
    assert limits is not None, "a trace has them before its first plan"
    return limits


def limits_of(value: list[Any]) -> StepLimits:
    """As a trace's line has them."""
    tokens, num_seqs, company = value
    return StepLimits(tokens, num_seqs, Company(*company))
