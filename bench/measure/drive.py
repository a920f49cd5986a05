"""One pass of a workload through an engine, with the time of every token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bench.workloads.workload import Workload
from jbatch.engine.engine import Engine
from jbatch.engine.intake import ScheduleFields
from jbatch.engine.records import EngineStep
from jbatch.errors import JBatchError
from jbatch.host.metrics import StepRecord, Summary
from jbatch.host.plan import StepPlan
from jbatch.outputs import FinishReason, RequestOutput
from jbatch.sampling_params import SamplingParams


class RunError(JBatchError):
    """A pass in which not all requests got all their tokens."""


class Event(NamedTuple):
    """One call of `Engine.step`: what was launched, what came in, and when the call ended and began."""

    plan: StepPlan | None
    record: StepRecord | None
    t: float  # seconds since the run's begin
    begin: float = 0.0  # when it began


class Fill(NamedTuple):
    """A static batch that waits to be full: until `batch_size` requests wait, or the oldest has done so for
    `timeout_s` seconds."""

    batch_size: int
    timeout_s: float


class Run(NamedTuple):
    """What is kept of a pass; all else is worked out from it afterwards, so that nothing slows the engine.

    Times are seconds since the run's begin, on a clock that skips what is idle.
    """

    workload: Workload
    events: list[Event]
    arrivals: list[float]  # by request
    token_times: list[list[float]]
    token_ids: list[list[int]]
    duration_s: float  # until the last token
    idle_s: float  # of it, with nothing unfinished
    summary: Summary
    fill: Fill | None = None  # None: no batch waits for more requests than there are


def drive(
    engine: Engine,
    workload: Workload,
    *,
    predicted: Sequence[int] | None = None,
    max_concurrency: int | None = None,
    temperature: float = 0.0,
    budget: int | None = None,
    wishes: Sequence[ScheduleFields] = (),
    clock: Callable[[], float] | None = None,
) -> Run:
    """Add requests as their arrival comes on the clock, and step until all have ended.

    While nothing is unfinished the clock is moved on to the next arrival instead of waiting for it.

    Args:
      engine: a fresh one.
      predicted: output lengths, for policy "sjf".
      max_concurrency: requests in the engine at once; others are sent when one ends, and their latencies
        count from then, as in `vllm bench`.
      budget: tokens that every request may generate, on a runner that knows where it ends by itself; by
        default those that it wants.
      wishes: what policies may go by, of each request.
      clock: the engine's own, by default.

    Raises:
      RunError: where a request did not get exactly the tokens it wants.
    """
    items, clock = workload.items, clock or engine.clock
    params = [forced_params(budget or item.output_len, temperature) for item in items]
    most = math.inf if max_concurrency is None else max_concurrency
    arrivals: list[float] = []  # of those that were sent
    run = Run(workload, [], arrivals, [[] for _ in items], [[] for _ in items], 0.0, 0.0, engine.summary)
    begin, skipped, last = clock(), 0.0, 0.0
    while len(arrivals) < len(items) or engine.has_unfinished:
        now = clock() - begin + skipped
        if not engine.has_unfinished:
            ahead = items[len(arrivals)].arrival - now
            skipped, now = skipped + max(0.0, ahead), now + max(0.0, ahead)
        while len(arrivals) < len(items) and engine.num_unfinished < most:
            number, item = len(arrivals), items[len(arrivals)]
            if item.arrival > now:
                break
            wished: Any = wishes[number] if wishes else {}
            arrivals.append(item.arrival if max_concurrency is None else now)
            engine.add_request(
                str(number),
                item.prompt_token_ids,
                params[number],
                arrival=begin - skipped + arrivals[-1],
                predicted_len=None if predicted is None else predicted[number],
                **wished,
            )
        began = clock() - begin + skipped
        step = engine.step()
        last = clock() - begin + skipped
        _note(step, began, last, run)
    return run._replace(duration_s=last, idle_s=skipped, summary=engine.summary)


def forced_params(output_len: int, temperature: float = 0.0) -> SamplingParams:
    """Of a request that gets exactly so many tokens."""
    return SamplingParams(max_tokens=output_len, ignore_eos=True, temperature=temperature, detokenize=False)


def _note(step: EngineStep, began: float, now: float, run: Run) -> None:
    """Keep what a step gave; a call that found nothing to do leaves nothing."""
    if step.plan is not None or step.record is not None:
        run.events.append(Event(step.plan, step.record, now, began))
    for new in step.progress:
        run.token_times[int(new.request_id)] += [now] * len(new.token_ids)
    for output in step.outputs:
        number = int(output.request_id)
        _check(output, run.workload.items[number].output_len)
        run.token_ids[number] = output.outputs[0].token_ids


def _check(output: RequestOutput, output_len: int) -> None:
    (completion,) = output.outputs
    ended = completion.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    if not ended or len(completion.token_ids) != output_len:
        raise RunError(
            f"request {output.request_id} ended with {len(completion.token_ids)} of {output_len} tokens, "
            f"finish_reason={str(completion.finish_reason)!r}: {output.error or 'no error'}"
        )
