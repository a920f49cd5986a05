"""Ratios between arms: printed only where they mean something, and beside what was claimed elsewhere."""

from __future__ import annotations

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
    """Ratios of output throughput, and of slot-steps, by names such as "continuous / static"; or {"refused":
    why}. Slot-steps are counted, not timed."""
    reason = refusal(arms, workload)
    if reason is not None:
        return {"refused": reason}
    found: dict[str, Any] = {}
    for base in (*STATIC, "unbatched"):
        for name in ("continuous", "static", "static-padded", "static-sorted"):
            over_unbatched = base == "unbatched"
            if not over_unbatched and name != "continuous":
                continue
            ratio = _ratio(arms, name, base)
            if ratio is not None:
                found[f"{name} / {base}"] = ratio
    slots = {name: arm.counts.slot_steps for name, arm in arms.items() if arm.counts is not None}
    for base in STATIC:
        if base in slots and "continuous" in slots:
            found[f"slot_steps {base} / continuous"] = slots[base] / slots["continuous"]
    return found


def refusal(arms: Mapping[str, ArmResult], workload: Workload) -> str | None:
    """Why no gain may be named; None where one may."""
    for name in (*BASELINES, "continuous"):
        if name not in arms or arms[name].not_run is not None:
            return f"{name} was not run, and a gain names {' and '.join(BASELINES)} beside continuous"
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


def _ratio(arms: Mapping[str, ArmResult], name: str, base: str) -> float | None:
    over, under = (arms[one].rates if one in arms else None for one in (name, base))
    if over is None or under is None or name == base:
        return None
    return over.output_throughput / under.output_throughput
