"""Ratios between arms: printed only where they mean something, and beside what was claimed elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.arms import STATIC
from bench.ladder import missing_prompt_tokens
from bench.results import ArmResult
from bench.workloads import Workload

LEAST_BATCHES = 16  # of requests: with one batch's worth, refilling cannot show
BASELINES = ("static", "static-padded")  # a gain names both


class Claim(NamedTuple):
    """Throughput over unbatched, as claimed for this engine's idea; how was not said."""

    static: float
    continuous: float


CLAIMED_OVER_STATIC = 2.9  # continuous; which static was not said
CLAIMS = {
    "uniform_short": Claim(2.1, 2.8),
    "mixed_length": Claim(1.5, 3.2),
    "bursty_traffic": Claim(1.8, 4.1),
}


def gains(arms: Mapping[str, ArmResult], workload: Workload) -> dict[str, Any]:
    """Ratios by names such as "continuous / static", or {"refused": why}.

    Of output throughput: the median over the repeats of the ratio within a repeat, since arms take turns and
    a slow spell hits its neighbours too. "decode_steps static / continuous" and "slot_steps ..." are counted.
    """
    reason = refusal(arms, workload)
    if reason is not None:
        return {"refused": reason}
    ran = [name for name, arm in arms.items() if arm.not_run is None]
    pairs = [("continuous", base) for base in ran if base != "continuous"]
    if "unbatched" in ran:
        pairs += [(name, "unbatched") for name in ran if name not in ("unbatched", "continuous")]
    found = {f"{over} / {under}": statistics.median(ratios(arms, over, under)) for over, under in pairs}
    for field in ("decode_steps", "slot_steps"):
        counted = {name: getattr(arms[name].counts, field) for name in ran}
        for base in ran:
            if base != "continuous":
                found[f"{field} {base} / continuous"] = counted[base] / counted["continuous"]
    return found


def ratios(arms: Mapping[str, ArmResult], over: str, under: str) -> list[float]:
    """Of output throughput, repeat by repeat."""
    return [a / b for a, b in zip(arms[over].repeats, arms[under].repeats, strict=False)]


def worst_range(arms: Mapping[str, ArmResult]) -> float:
    """By how much continuous over a static arm differed between repeats, relative to its median, at most."""
    worst = 0.0
    for base in STATIC:
        if base in arms and arms[base].not_run is None and len(arms[base].repeats) > 1:
            found = ratios(arms, "continuous", base)
            worst = max(worst, (max(found) - min(found)) / statistics.median(found))
    return worst


def refusal(arms: Mapping[str, ArmResult], workload: Workload) -> str | None:
    """Why no gain may be named; None where one may."""
    for name in (*BASELINES, "continuous"):
        if name not in arms or arms[name].not_run is not None:
            return f"{name} was not run, and a gain names {' and '.join(BASELINES)} beside continuous"
    if "request_rate" in workload.scales or (workload.name == "trace" and not workload.scales.get("closed")):
        return "in an open loop throughput follows the arrivals: compare latencies, or run it --closed"
    most = max(arm.max_num_seqs or 1 for arm in arms.values())
    if len(workload.items) < LEAST_BATCHES * most:
        return (
            f"{len(workload.items)} requests are fewer than {LEAST_BATCHES} batches of {most}: "
            "the first and the last batch weigh too much"
        )
    for name, arm in arms.items():
        missing = 0 if arm.not_run is not None else missing_prompt_tokens(arm, workload)
        if missing:
            return f"{name} computed {missing} prompt tokens too few in a repeat: they came from a cache"
    return None
