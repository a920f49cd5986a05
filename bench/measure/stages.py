"""When the requests of a pass went from one stage of their lives to the next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from bench.measure.drive import Fill, Run


class Stage(NamedTuple):
    """Two moments of a request, in seconds since the run's begin."""

    could_start: (
        float  # its batch was full, or had waited long enough; where none has to be full: its arrival
    )
    scheduled: float | None  # the step with its first chunk was planned; None: not known


def stages_of(run: Run) -> list[Stage]:
    """By request. A sequence's number is that of its request, since a fresh scheduler counts them as they are
    added."""
    batches = list(_batches(run))
    scheduled = {number: moment for batch in batches for number, moment in batch.items()}
    could_start = run.arrivals if run.fill is None else _could_start(run.arrivals, batches, run.fill)
    return [Stage(moment, scheduled.get(number)) for number, moment in enumerate(could_start)]


def _batches(run: Run) -> Iterator[dict[int, float]]:
    """When each request was scheduled, by static batches: one has ended where nothing runs any more."""
    known: set[int] = set()
    batch: dict[int, float] = {}
    for event in run.events:
        for chunk in event.plan.chunks if event.plan is not None else ():
            if chunk.seq_id not in known:
                known.add(chunk.seq_id)
                batch[chunk.seq_id] = event.begin
        if event.record is not None and not event.record.num_running and batch:
            yield batch
            batch = {}
    if batch:
        yield batch


def _could_start(arrivals: list[float], batches: list[dict[int, float]], fill: Fill) -> list[float]:
    """When each request could have started: from its arrival on, once so many waited as fill a batch, or one
    of them had waited long enough. What is left of the wait was for a batch that ran."""
    could_start, waiting = list(arrivals), set(range(len(arrivals)))
    for batch in batches:
        begin = min(batch.values())
        came = sorted(arrivals[number] for number in waiting if arrivals[number] <= begin)
        full = came[fill.batch_size - 1] if len(came) >= fill.batch_size else math.inf
        ready = min(full, came[0] + fill.timeout_s, begin)
        for number in batch:
            could_start[number] = max(arrivals[number], ready)
        waiting -= batch.keys()
    return could_start
