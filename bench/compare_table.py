"""A comparison's results for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.results import ArmResult, Results
from bench.tables import console, describe_workload


def print_comparison(results: Results, out: Console | None = None) -> None:
    """Figures, ratios, what each arm is, and why some were not run."""
    out = out or console()
    manifest = results.manifest
    out.print(f"\n{describe_workload(results.workload)}")
    out.print(f"{manifest['model']} on {manifest['device']}, at most {manifest['max_num_seqs']} at once\n")
    ran = {name: arm for name, arm in results.arms.items() if arm.not_run is None}
    table = Table(*HEADINGS, box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, arm in ran.items():
        table.add_row(*_figures(name, arm))
    out.print(table)
    for name, ratio in results.gains.items():
        out.print(f"{name}: {ratio:.2f}x")
    out.print()
    for name, arm in results.arms.items():
        out.print(f"{name}: {arm.definition}")
        if arm.not_run is not None:
            out.print(f"    not run: {arm.not_run}")
        else:
            out.print(f"    attention {arm.extra['attention']}; {arm.extra['execution']}")


HEADINGS = ("arm", "tokens/s", "spread", "requests/s", "warm-up s", "same tokens", "near-ties", "largest gap")


def _figures(name: str, arm: ArmResult) -> tuple[str, ...]:
    assert arm.rates is not None
    check: dict[str, Any] = arm.extra["check"]
    return (
        name,
        f"{arm.rates.output_throughput:.0f}",
        "" if arm.spread is None else f"{arm.spread:.0%}",
        f"{arm.rates.request_throughput:.2f}",
        f"{arm.extra['warm_up_s']:.1f}",
        f"{check['equal']} of {check['requests']}",
        f"{check['near_ties']}",
        f"{check['largest_gap']:.1g}" if check["near_ties"] else "",
    )
