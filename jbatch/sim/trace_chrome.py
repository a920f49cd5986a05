"""A trace as JSON that Perfetto and Chrome's chrome://tracing show: a track for each row, a slice for each
stay of a sequence in it, the steps, and counters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from jbatch.sim.trace_file import Trace, followed

DEVICE, ROWS = 1, 2  # processes, as the viewer calls them
Event = dict[str, Any]


class _Step(NamedTuple):
    plan: dict[str, Any]
    result: dict[str, Any]
    begin: float  # seconds: when the device could begin
    ready: float


class _Stay(NamedTuple):
    """A sequence in a row, from its first step there to its last one."""

    seq_id: int
    begin: float
    ready: float


def to_chrome(trace: Trace) -> dict[str, Any]:
    """The whole trace; times are microseconds from its first step. Raises TraceError for one that was
    changed."""
    with followed(trace):
        steps = list(_steps(trace))
        zero = steps[0].begin if steps else 0.0
        events = [*_names(trace), *_device_events(steps), *_row_events(steps)]
        for event in events:
            if "ts" in event:
                event["ts"] = round((event["ts"] - zero) * 1e6, 3)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _steps(trace: Trace) -> Iterator[_Step]:
    """Steps whose result came in."""
    plans: dict[int, dict[str, Any]] = {}
    free = 0.0  # when the device had done the step before
    for line in trace.lines:
        value = line.value[line.kind]
        if line.kind == "plan" and value is not None:
            plans[value["step"]] = value
        elif line.kind == "result":
            submitted, ready, _ = value["times"]
            ready = max(ready, submitted)
            yield _Step(plans.pop(value["step"]), value, max(submitted, free), ready)
            free = ready


def _names(trace: Trace) -> Iterator[Event]:
    yield {"ph": "M", "pid": DEVICE, "name": "process_name", "args": {"name": "device"}}
    yield {"ph": "M", "pid": ROWS, "name": "process_name", "args": {"name": "rows"}}
    for row in range(trace.config["shape"]["num_rows"]):
        yield {"ph": "M", "pid": ROWS, "tid": row, "name": "thread_name", "args": {"name": f"row {row}"}}


def _device_events(steps: list[_Step]) -> Iterator[Event]:
    for step in steps:
        slots, tokens = len(step.plan["seqs"]), sum(chunk[3] - chunk[2] for chunk in step.plan["chunks"])
        about = {
            "step": step.plan["step"],
            "bucket": step.plan["bucket"],
            "preempted": step.plan["preempted"],
        }
        name = f"{slots} decode, {tokens} prompt tokens"
        yield _slice(DEVICE, 0, name, step.begin, step.ready, about)
        pages = {"pages": step.result["pages_used"]}
        yield {"ph": "C", "pid": DEVICE, "name": "pages in use", "ts": step.ready, "args": pages}
        sequences = {name: step.result[name] for name in ("running", "waiting")}
        yield {"ph": "C", "pid": DEVICE, "name": "sequences", "ts": step.ready, "args": sequences}


def _row_events(steps: list[_Step]) -> Iterator[Event]:
    stays: dict[int, _Stay] = {}  # by row
    for step in steps:
        for row in [row for row, stay in stays.items() if stay.seq_id in step.plan["preempted"]]:
            yield _end_of(row, stays.pop(row))
        for row, seq_id in _in_rows(step.plan):
            stay = stays.get(row)
            if stay is not None and stay.seq_id != seq_id:
                yield _end_of(row, stay)
                stay = None
            stays[row] = _Stay(seq_id, step.begin if stay is None else stay.begin, step.ready)
    for row, stay in stays.items():
        yield _end_of(row, stay)


def _in_rows(plan: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Rows and the sequences that a step has in them."""
    yield from zip(plan["rows"], plan["seqs"], strict=True)
    for seq_id, row, _, _, draws in plan["chunks"]:
        yield row, seq_id
        yield from ((draw_row, draw_seq) for draw_seq, draw_row in draws)


def _end_of(row: int, stay: _Stay) -> Event:
    return _slice(ROWS, row, f"sequence {stay.seq_id}", stay.begin, stay.ready, {})


def _slice(pid: int, tid: int, name: str, begin: float, end: float, about: dict[str, Any]) -> Event:
    took = round((end - begin) * 1e6, 3)
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": name,
        "ts": begin,
        "dur": max(0.0, took),
        "args": about,
    }
