"""Gains of a ladder for people, beside what was claimed, and what each arm is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.ladder.arms import STATIC
from bench.ladder.gains import (
    BASELINES,
    CLAIMED_OVER_STATIC,
    CLAIMS,
    LEAST_BATCHES,
    TRUSTED_RANGE,
    worst_range,
)
from bench.results import ArmResult, Results
from jbatch.cli.tables import Page, Table, meanings

OVER_UNBATCHED = ("static", "static-padded", "static-sorted", "continuous")

Gains = Mapping[str, Mapping[str, Any]]  # of each workload, by its name


def print_gains(out: Page, every: Sequence[Results], details: bool = False) -> None:
    """Print why no gain is named, where none is; with `details` also gains over unbatched, and of continuous
    over each static baseline, beside what was claimed, and what each arm is."""
    named = {r.workload["name"]: r.gains for r in every if "refused" not in r.gains}
    if named and details:
        out.print("tokens/s over those of unbatched (in brackets: claimed)")
        out.show(over_unbatched_table(named))
        out.print(
            "tokens/s of continuous over those of each static arm (in brackets: claimed, for a static that "
            "was left undefined)"
        )
        out.show(over_static_table(named))
        for field, text in (("num_steps", "steps"), ("slot_steps", "slot-steps")):
            out.print(f"{text} of each static arm over those of continuous, counted")
            out.show(counted_table(named, field))
        _print_range(out, [worst_range(r.arms) for r in every if "refused" not in r.gains])
    for results in every:
        if "refused" in results.gains:
            out.print(f"{results.workload['name']}: no gain is named: {results.gains['refused']}")
    if details:
        print_definitions(out, {name: arm for results in every for name, arm in results.arms.items()})
    else:
        out.print("With --details: rates, counts, pages, latencies and gains, and what each arm is.")


def over_unbatched_table(named: Gains) -> Table:
    """Arms by workload."""

    def cell(workload: str, arm: str) -> str:
        claim = CLAIMS.get(workload)
        claimed = {"static": claim.static, "continuous": claim.continuous} if claim else {}
        return _beside(named[workload].get(f"{arm} / unbatched"), claimed.get(arm))

    return _by_workload(OVER_UNBATCHED, named, cell)


def over_static_table(named: Gains) -> Table:
    """Arms by workload."""

    def cell(workload: str, arm: str) -> str:
        claimed = CLAIMED_OVER_STATIC if arm in BASELINES else None
        return _beside(named[workload].get(f"continuous / {arm}"), claimed)

    return _by_workload(STATIC, named, cell)


def counted_table(named: Gains, field: str) -> Table:
    """Arms by workload."""
    return _by_workload(
        STATIC, named, lambda workload, arm: _beside(named[workload].get(f"{field} {arm} / continuous"), None)
    )


def _by_workload(arms: Sequence[str], named: Gains, cell: Callable[[str, str], str]) -> Table:
    rows = [(arm, *(cell(workload, arm) for workload in named)) for arm in arms]
    return Table(("arm", *named), [row for row in rows if any(row[1:])])


def _print_range(out: Page, ranges: Sequence[float | None]) -> None:
    """Say whether the timed gains mean something."""
    known = [width for width in ranges if width is not None]
    if not known:
        out.print("Timed gains are of one repeat: no spread is known.")
        return
    worst, doubt = max(known), ""
    if worst > TRUSTED_RANGE:
        doubt = ": too much for a timed gain to be trusted; what was counted stands"
    out.print(
        "Timed gains are medians over the repeats of the ratio within a repeat; between repeats they "
        f"differed by up to {worst:.0%}{doubt}."
    )


def print_definitions(out: Page, arms: Mapping[str, ArmResult]) -> None:
    """Print what each arm is, and when a gain is named."""
    out.print("what each arm is; all run on the same weights, kernels and compiled programs:")
    out.print(meanings({name: arm.definition for name, arm in arms.items()}))
    out.print(f"A gain needs {LEAST_BATCHES} batches of requests.")


def _beside(value: float | None, claimed: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + (f" ({claimed})" if claimed is not None else "")
