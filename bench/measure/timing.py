"""Timing programs of many chained calls, several implementations in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

TARGET_S = 0.01  # of one timed stretch at least: what starting it costs is then below 1 %
MAX_PASSES = 200
MAX_TOTAL_S = 2.0  # of one candidate, beyond its first rounds
MIN_ROUNDS = 3


class Candidate(NamedTuple):
    """One implementation of a problem, compiled."""

    name: str
    once: Callable[[], Any]  # the result of the problem's first call; comes before `many`
    many: Callable[[int], Any]  # so many passes of `num_calls` calls, in series; returns when all are done
    num_calls: int
    tiles: dict[str, Any] | None = None


class Times(NamedTuple):
    """Seconds per call."""

    median: float
    best: float
    worst: float
    calls: int  # of each timed stretch
    rounds: int


NOT_TIMED = Times(float("nan"), float("nan"), float("nan"), 0, 0)


def time_in_turns(candidates: Sequence[Candidate], rounds: int) -> dict[str, Times]:
    """Time each candidate once per round, so that a slow spell of the machine hits all of them.

    Nothing is subtracted: a stretch is host time from its first dispatch to its last result, over its calls.
    With no rounds at all, each candidate just runs once.
    """
    if not rounds:
        for candidate in candidates:
            candidate.many(1)
        return {candidate.name: NOT_TIMED for candidate in candidates}
    passes = {candidate.name: _passes(candidate) for candidate in candidates}
    spans: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for index in range(rounds):
        for candidate in candidates:
            if index < MIN_ROUNDS or sum(spans[candidate.name]) < MAX_TOTAL_S:
                spans[candidate.name].append(_time(candidate, passes[candidate.name]))
    return {
        candidate.name: summary(spans[candidate.name], passes[candidate.name] * candidate.num_calls)
        for candidate in candidates
    }


def summary(spans: Sequence[float], calls: int) -> Times:
    per_call = [span / calls for span in spans]
    return Times(statistics.median(per_call), min(per_call), max(per_call), calls, len(per_call))


def _passes(candidate: Candidate) -> int:
    """How many passes fill a stretch, after code was loaded and graphs were built."""
    candidate.many(1)
    candidate.many(1)
    return min(MAX_PASSES, max(1, round(TARGET_S / _time(candidate, 1))))


def _time(candidate: Candidate, passes: int) -> float:
    begin = time.perf_counter()
    candidate.many(passes)
    return time.perf_counter() - begin
