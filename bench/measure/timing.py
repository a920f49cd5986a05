"""Timing programs of many chained calls, those that are compared in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

TARGET_S = 0.01  # of one timed stretch at least: what starting it costs is then below 1 %
MAX_PASSES = 200
MAX_TOTAL_S = 2.0  # of one arm, beyond its first rounds
MIN_ROUNDS = 3


class CompiledArm(NamedTuple):
    """What takes part in a comparison of programs, compiled: such as an implementation of attention."""

    name: str
    once: Callable[[], Any]  # the result of the problem's first call; comes before `many`
    many: Callable[[int], Any]  # so many passes of `num_calls` calls, in series; returns when all are done
    num_calls: int
    tiles: dict[str, Any] | None = None


class Times(NamedTuple):
    """How long a call takes, in seconds."""

    median: float
    best: float
    worst: float
    calls: int  # of each timed stretch
    rounds: int


NOT_TIMED = Times(float("nan"), float("nan"), float("nan"), 0, 0)


def time_in_turns(arms: Sequence[CompiledArm], rounds: int) -> dict[str, Times]:
    """Time each arm once per round, so that a slow spell of the machine hits all of them.

    Nothing is subtracted: a stretch is host time from its first dispatch to its last result, over its calls.
    With no rounds at all, each arm just runs once.
    """
    if not rounds:
        for arm in arms:
            arm.many(1)
        return {arm.name: NOT_TIMED for arm in arms}
    passes = {arm.name: _passes(arm) for arm in arms}
    spans: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for index in range(rounds):
        for arm in arms:
            if index < MIN_ROUNDS or sum(spans[arm.name]) < MAX_TOTAL_S:
                spans[arm.name].append(_time(arm, passes[arm.name]))
    return {arm.name: summary(spans[arm.name], passes[arm.name] * arm.num_calls) for arm in arms}


def summary(spans: Sequence[float], calls: int) -> Times:
    """The times of stretches of so many calls each."""
    per_call = [span / calls for span in spans]
    return Times(statistics.median(per_call), min(per_call), max(per_call), calls, len(per_call))


def _passes(arm: CompiledArm) -> int:
    """How many passes fill a stretch, after code was loaded and graphs were built."""
    arm.many(1)
    arm.many(1)
    return min(MAX_PASSES, max(1, round(TARGET_S / _time(arm, 1))))


def _time(arm: CompiledArm, passes: int) -> float:
    begin = time.perf_counter()
    arm.many(passes)
    return time.perf_counter() - begin
