"""Ratios between arms: printed only where they mean something, and beside what was claimed elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.ladder.arms import STATIC
from bench.ladder.ladder import missing_prompt_tokens
from bench.results import ArmResult
from bench.workloads.workload import Workload

LEAST_BATCHES = 16  # of requests: with one batch's worth, refilling cannot show
TRUSTED_RANGE = 0.2  # of a gain's median, between repeats
BASELINES = ("static", "static-padded")  # a gain names both


class Claim(NamedTuple):
    """Throughput over unbatched, as claimed for LLaMA-7B on a GPU; how it was measured was not said."""

    static: float
    continuous: float


CLAIMED_OVER_STATIC = 2.9  # continuous; which static was not said
CLAIMS = {
    "uniform_short": Claim(2.1, 2.8),
    "mixed_length": Claim(1.5, 3.2),
    "bursty_traffic": Claim(1.8, 4.1),
}


def gains(
    arms: Mapping[str, ArmResult], workload: Workload, max_concurrency: int | None = None
) -> dict[str, Any]:
    """Ratios by names such as "continuous / static", or {"refused": why}.

    Of output throughput: the median over the repeats of the ratio within a repeat, since arms take turns and
    a slow spell hits its neighbours too. "num_steps static / continuous" and "slot_steps ..." are counted.
    """
    reason = refusal(arms, workload, max_concurrency)
    if reason is not None:
        return {"refused": reason}
    ran = [name for name, arm in arms.items() if arm.not_run is None]
    pairs = [("continuous", base) for base in ran if base != "continuous"]
    if "unbatched" in ran:
        pairs += [(name, "unbatched") for name in ran if name not in ("unbatched", "continuous")]
    named = {f"{over} / {under}": statistics.median(ratios(arms, over, under)) for over, under in pairs}
    for field in ("num_steps", "slot_steps"):
        counted = {name: getattr(arms[name].counts, field) for name in ran}
        for base in ran:
            if base != "continuous":
                named[f"{field} {base} / continuous"] = counted[base] / counted["continuous"]
    return named


def ratios(arms: Mapping[str, ArmResult], over: str, under: str) -> list[float]:
    """Ratios of output throughput, repeat by repeat."""
    return [a / b for a, b in zip(arms[over].repeats, arms[under].repeats, strict=False)]


def worst_range(arms: Mapping[str, ArmResult]) -> float | None:
    """By how much continuous over a static arm differed between repeats, relative to its median, at most;
    None where there was one repeat."""
    bases = (base for base in STATIC if base in arms and arms[base].not_run is None)
    ranges = [relative_range(ratios(arms, "continuous", base)) for base in bases]
    return max((known for known in ranges if known is not None), default=None)


def relative_range(values: Sequence[float]) -> float | None:
    """(most - least) / median; None of fewer than two."""
    return (max(values) - min(values)) / statistics.median(values) if len(values) > 1 else None


def open_loop(workload: Workload) -> bool:
    """Whether requests come at times of their own, so that throughput follows them. Bursts at their usual
    times do not: each arm is through with one before the next."""
    scales = workload.scales
    if scales.get("closed"):
        return False
    rescaled = workload.name == "bursty_traffic" and scales.get("time_scale", 1) != 1
    return workload.name == "trace" or bool({"request_rate", "load"} & scales.keys()) or rescaled


def refusal(
    arms: Mapping[str, ArmResult], workload: Workload, max_concurrency: int | None = None
) -> str | None:
    """Why no gain may be named; None where one may."""
    for name in (*BASELINES, "continuous"):
        if name not in arms or arms[name].not_run is not None:
            return f"{name} was not run, and a gain names {' and '.join(BASELINES)} beside continuous"
    if open_loop(workload):
        return "in an open loop throughput follows the arrivals: compare latencies, or run it --closed"
    most = max(arm.max_num_seqs or 1 for arm in arms.values())
    if len(workload.items) < LEAST_BATCHES * most:
        return (
            f"{len(workload.items)} requests are fewer than {LEAST_BATCHES} batches of {most}: "
            "the first and the last batch weigh too much"
        )
    if max_concurrency is not None and max_concurrency < most:
        return f"max_concurrency={max_concurrency} does not fill batches of {most}"
    for name, arm in arms.items():
        if arm.not_run is None and (reason := _spoilt(name, arm, workload)):
            return reason
    return None


def _spoilt(name: str, arm: ArmResult, workload: Workload) -> str | None:
    """Why an arm's repeats are not what they should be."""
    if missing := missing_prompt_tokens(arm, workload):
        return f"{name} computed {missing} prompt tokens too few in a repeat: they came from a cache"
    if compiled := arm.extra["most_compilations"]:
        return f"{name} compiled {compiled} programs in a repeat, and its time holds that of compiling"
    return None
