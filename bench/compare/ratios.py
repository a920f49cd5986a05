"""Throughput ratios between the arms of a comparison, where they mean something."""

from __future__ import annotations

from typing import Any

from bench.compare.arms import REFERENCE
from bench.ladder.gains import LEAST_BATCHES
from bench.results import ArmResult
from bench.workloads.workload import Workload

LEAST_COMPARED = 0.2  # of an arm's tokens: with fewer, it is not trusted
STATIC = ("hf-generate",)  # arms that run batch by batch


def ratios(arms: dict[str, ArmResult], workload: Workload) -> dict[str, Any]:
    """jbatch's output throughput over each other's; a replay's over the other executor's; {"refused": why}
    in the place of one that would mislead."""
    named: dict[str, Any] = {}
    for name, arm in arms.items():
        base = "replay-jbatch" if name.startswith("replay") else REFERENCE
        over = arms.get(base)
        if name != base and over is not None and over.rates is not None and arm.rates is not None:
            reason = _refusal(base, over, workload) or _refusal(name, arm, workload)
            ratio = over.rates.output_throughput / arm.rates.output_throughput
            named[f"{base} / {name}"] = ratio if reason is None else {"refused": reason}
    return named


def compared_share(arm: ArmResult, num_output_tokens: int) -> float:
    """Of an arm's tokens, those that were held against the reference's: not what lies behind a parting."""
    return arm.extra["check"]["compared_tokens"] / num_output_tokens


def _refusal(name: str, arm: ArmResult, workload: Workload) -> str | None:
    """Why an arm is in no ratio; None where it may be."""
    share = compared_share(arm, workload.num_output_tokens)
    if share < LEAST_COMPARED:
        return f"{name} is not trusted: only {share:.0%} of its tokens could be compared"
    most = arm.max_num_seqs or 1
    if name in STATIC and len(workload.items) < LEAST_BATCHES * most:
        return (
            f"{len(workload.items)} requests are fewer than {LEAST_BATCHES} static batches of {most}: "
            "the first and the last batch weigh too much"
        )
    return None
