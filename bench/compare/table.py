"""A comparison's results for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.compare.ratios import compared_share
from bench.ladder.tables import console, describe_workload
from bench.results import ArmResult, Results


def print_comparison(results: Results, out: Console | None = None) -> None:
    """Figures, ratios, what each arm is, and why some were not run."""
    out = out or console()
    manifest = results.manifest
    out.print(f"\n{describe_workload(results.workload)}")
    out.print(f"{manifest['model']} on {manifest['device']}, at most {manifest['max_num_seqs']} at once\n")
    ran = {name: arm for name, arm in results.arms.items() if arm.not_run is None}
    table = Table(*HEADINGS, box=box.SIMPLE)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for name, arm in ran.items():
        table.add_row(*_figures(name, arm, results.workload["num_output_tokens"]))
    out.print(table)
    for name, ratio in results.gains.items():
        out.print(f"{name}: {_ratio(ratio)}")
    out.print()
    for name, arm in results.arms.items():
        out.print(f"{name}: {arm.definition}")
        if arm.not_run is not None:
            out.print(f"    not run: {arm.not_run}")
        else:
            out.print(f"    attention {arm.extra['attention']}; {arm.extra['execution']}")


HEADINGS = (
    *("arm", "tokens/s", "spread", "requests/s", "warm-up s", "same tokens", "near-ties", "largest gap"),
    "compared",
)


def _ratio(value: Any) -> str:
    return f"no ratio: {value['refused']}" if isinstance(value, dict) else f"{value:.2f}x"


def _figures(name: str, arm: ArmResult, num_output_tokens: int) -> tuple[str, ...]:
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
        f"{compared_share(arm, num_output_tokens):.0%}",
    )
