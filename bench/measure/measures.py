"""From a pass to its figures: counts, rates and latencies, by vLLM's names."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bench.measure.drive import Run
from bench.measure.stages import stages_of
from bench.results import Counts, Latencies, Rates, RequestRow, Spread, StepRow

PARTS = ("fill", "queue", "prefill", "decode")  # of E2EL


def counts(run: Run, steps: Sequence[StepRow], page_size: int, compilations: int) -> Counts:
    """What a pass computed, summed over its steps."""
    summary = run.summary
    pages, contiguous = sum(s.pages_used for s in steps), sum(s.pages_contiguous for s in steps)
    return Counts(
        num_steps=summary.num_steps,
        decode_steps=summary.decode_steps,
        prefill_steps=summary.prefill_steps,
        slot_steps=summary.slot_steps,
        useful_slot_steps=summary.useful_slot_steps,
        output_tokens=summary.output_tokens,
        prefill_tokens=summary.prefill_tokens,
        useful_prefill_tokens=summary.useful_prefill_tokens,
        recomputed=summary.recomputed,
        prefill_padded=summary.padded_tokens,
        decode_padded=summary.padded_slots,
        decode_wasted=summary.wasted,
        num_preempted=summary.num_preempted,
        peak_pages_used=summary.peak_pages_used,
        slot_use=summary.slot_use,
        padded_share=1 - summary.prefill_use,
        kv_use=sum(step.kv_tokens for step in steps) / (pages * page_size) if pages else 0.0,
        compilations_after_warmup=compilations,
        mean_pages_used=pages / max(1, len(steps)),
        mean_pages_contiguous=contiguous / max(1, len(steps)),
        peak_pages_contiguous=max((step.pages_contiguous for step in steps), default=0),
        kv_of_contiguous=pages / contiguous if contiguous else 0.0,
        prefix_hit_rate=summary.hit_rate,
    )


def rates(run: Run, steps: Sequence[StepRow], limits: Mapping[str, float] | None = None) -> Rates:
    """What a pass did per second of busy time; `limits` (ms, by latency) are those of goodput."""
    busy_s = max(run.duration_s - run.idle_s, 1e-9)
    num_output, device_s = run.workload.num_output_tokens, sum(step.device_s for step in steps)
    floors = [step.floor_s for step in steps if step.floor_s is not None]
    return Rates(
        duration_s=run.duration_s,
        idle_s=run.idle_s,
        request_throughput=len(run.arrivals) / busy_s,
        output_throughput=num_output / busy_s,
        total_token_throughput=(run.workload.num_prompt_tokens + num_output) / busy_s,
        request_goodput=num_within(run, limits) / busy_s if limits else None,
        device_busy_share=device_s / busy_s if device_s else None,
        floor_share=sum(floors) / busy_s if floors else None,
    )


def request_rows(run: Run) -> list[RequestRow]:
    """When each request came, could have started, was scheduled, got its first token and ended."""
    stages = stages_of(run)
    return [
        RequestRow(arrival, times[0], times[-1], len(item.prompt_token_ids), item.output_len, *stage)
        for arrival, times, item, stage in zip(
            run.arrivals, run.token_times, run.workload.items, stages, strict=True
        )
    ]


def latencies(run: Run) -> Latencies:
    """The latencies of a pass, in milliseconds."""
    rows = request_rows(run)
    gaps = (later - sooner for times in run.token_times for sooner, later in itertools.pairwise(times))
    return Latencies(
        ttft=spread(_latency(row, "ttft") for row in rows),
        tpot=spread(_latency(row, "tpot") for row in rows),
        itl=spread(1e3 * gap for gap in gaps),
        e2el=spread(_latency(row, "e2el") for row in rows),
        **{name: spread(found[name] for row in rows if (found := parts(row))) for name in PARTS},
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and interpolated percentiles of the values that are known; None where there are none."""
    known = np.array([value for value in values if value is not None])
    if not known.size:
        return None
    return Spread(float(known.mean()), *(float(p) for p in np.percentile(known, (50, 90, 99))))


def num_within(run: Run, limits: Mapping[str, float]) -> int:
    """How many requests keep all limits; one without a latency (TPOT of one token) keeps its limit."""
    return sum(
        all((_latency(row, name) or 0.0) <= limit for name, limit in limits.items())
        for row in request_rows(run)
    )


def parts(row: RequestRow) -> dict[str, float] | None:
    """The parts of a request's E2EL, in milliseconds; None where it is not known when it was scheduled."""
    if row.could_start is None or row.scheduled is None:
        return None
    moments = row.arrival, row.could_start, row.scheduled, row.first_token, row.end
    spans = (1e3 * (later - sooner) for sooner, later in itertools.pairwise(moments))
    return dict(zip(PARTS, spans, strict=True))


def _latency(row: RequestRow, name: str) -> float | None:
    """A request's latency by its name, in milliseconds; None where it has none."""
    if name == "ttft":
        return 1e3 * (row.first_token - row.arrival)
    if name == "e2el":
        return 1e3 * (row.end - row.arrival)
    return 1e3 * (row.end - row.first_token) / (row.output_len - 1) if row.output_len > 1 else None
