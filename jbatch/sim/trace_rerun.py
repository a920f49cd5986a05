"""The requests of a trace under another policy, counted in steps.

Requests come as many steps after the first as in the trace, and get as many tokens. Every step takes one
unit of time, so this compares orders and not times.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from jbatch.engine.trace import draws_of
from jbatch.host.limits import StepLimits
from jbatch.host.plan import StepPlan
from jbatch.host.request import Sequence
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.seam.step_output import Status
from jbatch.sim.trace_file import Line, Trace, TraceError, followed
from jbatch.sim.trace_replay import limits_of
from jbatch.sim.trace_sequences import TraceSequences

MIN_STEP_S = 1e-4  # so that time goes on where the trace has a single step


class Outcome(NamedTuple):
    """What became of a trace's requests."""

    steps: int  # of the device
    makespan: int  # steps until the last end, with those in which nothing ran
    preemptions: int
    mean_latency: float  # steps from a sequence's arrival to its end


class _Past(NamedTuple):
    """What the trace says of all."""

    added: list[tuple[int, dict[str, Any]]]  # the step before which each came, and what it was
    ends: dict[int, tuple[int, int, FinishReason]]  # the step before which each had ended, tokens, why
    times: list[float]  # of the plans
    limits: StepLimits  # the largest budgets
    num_preempted: int


def recorded(trace: Trace) -> Outcome:
    """What became of the requests in the trace itself. Raises TraceError for a trace without steps."""
    past = _past(trace)
    steps = len(past.times)
    with followed(trace):
        latencies = [past.ends[fields["seq"]][0] - came for came, fields in past.added]
    return Outcome(steps, steps, past.num_preempted, _mean(latencies))


def rerun(trace: Trace, policy: str | None = None, admission: str | None = None) -> Outcome:
    """What would have become of them under another policy or admission; the trace's own where none is named.

    Raises:
      TraceError: for a trace without steps, or of another version.
    """
    with followed(trace):
        return _Rerun(trace, policy, admission).run()


def _past(trace: Trace) -> _Past:
    added: list[tuple[int, dict[str, Any]]] = []
    ends: dict[int, tuple[int, int, FinishReason]] = {}
    times: list[float] = []
    limits: list[StepLimits] = []
    num_preempted = 0
    for line in trace.lines:
        with followed(trace, line):
            value = line.value[line.kind]
            if line.kind == "add":
                added.append((len(times), value))
            elif line.kind == "limits":
                limits.append(limits_of(value))
            elif line.kind == "plan" and value is not None:
                num_preempted += len(value["preempted"])
                times.append(line.value["now"])
            for seq_id, tokens, reason in _ends_in(line):
                ends.setdefault(seq_id, (len(times), tokens, FinishReason(reason)))
    if not times or not limits:
        raise TraceError(f"{trace.path}: it has no step")
    with followed(trace):
        for _, fields in added:
            ends.setdefault(fields["seq"], (len(times), 0, FinishReason.ABORT))
    return _Past(added, ends, times, _largest(limits), num_preempted)


def _largest(limits: list[StepLimits]) -> StepLimits:
    """The largest budgets that a step had: the first ones may be 0, and with those nothing would ever run."""
    return limits[0]._replace(
        max_num_batched_tokens=max(each.max_num_batched_tokens for each in limits),
        max_num_seqs=max(each.max_num_seqs for each in limits),
    )


def _ends_in(line: Line) -> list[Any]:
    if line.kind == "end":
        return [line.value["end"]]
    return line.value["result"]["ends"] if line.kind == "result" else []


class _Rerun:
    def __init__(self, trace: Trace, policy: str | None, admission: str | None):
        self._past = past = _past(trace)
        self._config = trace.config_for(policy, admission)
        self._scheduler = Scheduler(self._config, lambda view: past.limits)
        self._sequences, self._known = TraceSequences(trace), dict[int, Sequence]()
        self._left = {seq_id: tokens for seq_id, (_, tokens, _) in past.ends.items()}
        self._in_flight: deque[StepPlan] = deque()
        self._came: dict[int, int] = {}  # the step before which each came
        self._ends: dict[int, int] = {}  # and the one after which it ended

    def run(self) -> Outcome:
        step = num_plans = preemptions = num_added = 0
        added = self._past.added
        while num_added < len(added) or self._scheduler.has_unfinished or self._in_flight:
            while num_added < len(added) and added[num_added][0] <= step:
                self._add(added[num_added][1], added[num_added][0])
                num_added += 1
            plan = self._scheduler.schedule(self._now(step))
            if plan is not None:
                self._in_flight.append(plan)
                num_plans, preemptions = num_plans + 1, preemptions + len(plan.preempted)
                step += 1
            if self._in_flight and (plan is None or len(self._in_flight) > 1):
                self._land(self._in_flight.popleft(), step)
            elif plan is None:
                step += 1  # it waits: for requests to come, or for a batch to be full
        latency = _mean([end - self._came[seq_id] for seq_id, end in self._ends.items()])
        return Outcome(num_plans, step, preemptions, latency)

    def _now(self, step: int) -> float:
        """The time that it was in the trace; behind its end, as if it had gone on."""
        times = self._past.times
        if step < len(times):
            return times[step]
        mean = max(MIN_STEP_S, (times[-1] - times[0]) / len(times))
        return times[-1] + mean * (step - len(times) + 1)

    def _add(self, fields: dict[str, Any], step: int) -> None:
        sequence = self._sequences.add(self._scheduler, fields, keyed=False)
        seq_id = sequence.seq_id
        self._known[seq_id], self._came[seq_id] = sequence, step
        if not self._left[seq_id] and fields["max_tokens"]:
            self._end(seq_id, step)  # it was aborted before it had any token

    def _end(self, seq_id: int, step: int) -> None:
        self._scheduler.finish(self._known[seq_id], self._past.ends[seq_id][2])
        self._ends.setdefault(seq_id, step)

    def _land(self, plan: StepPlan, step: int) -> None:
        ends: dict[int, tuple[int, int]] = {}
        done: list[int] = []
        for place, seq_id in draws_of(plan):
            count = min(plan.bucket.steps, self._left[seq_id])
            self._left[seq_id] -= count
            by_budget = self._known[seq_id].num_known + count >= self._known[seq_id].max_len
            status = Status.OUT_OF_BUDGET if by_budget else Status.RUNNING
            if count and not self._left[seq_id]:
                done.append(seq_id)
            ends[place] = (count, status)
        output = self._sequences.output(plan, self._known, ends, self._config.shape)
        self._scheduler.apply(plan, output)
        for seq_id in done:
            self._end(seq_id, step)
        for chunk in plan.chunks:
            if self._known[chunk.seq_id].finished:
                self._ends.setdefault(chunk.seq_id, step)


def _mean(values: list[int]) -> float:
    return sum(values) / max(1, len(values))
