"""A comparison's results for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.compare.ratios import compared_share
from bench.ladder.tables import describe_workload
from bench.results import ArmResult, Results
from jbatch.cli.tables import Page, Table


def print_comparison(results: Results, out: Page | None = None) -> None:
    """Figures, ratios, what each arm is, and why some were not run."""
    out = out or Page()
    manifest, num_output_tokens = results.manifest, results.workload["num_output_tokens"]
    out.print(f"\n{describe_workload(results.workload)}")
    out.print(f"{manifest['model']} on {manifest['device']}, at most {manifest['max_num_seqs']} at once\n")
    ran = {name: arm for name, arm in results.arms.items() if arm.not_run is None}
    out.show(speed_table(ran))
    out.show(check_table(ran, num_output_tokens))
    for name, ratio in results.gains.items():
        out.print(f"{name}: {_ratio(ratio)}")
    out.print()
    for name, arm in results.arms.items():
        out.print(f"{name}: {arm.definition}")
        if arm.not_run is not None:
            out.print(f"    not run: {arm.not_run}")
        else:
            out.print(f"    attention {arm.extra['attention']}; {arm.extra['execution']}")


def speed_table(arms: Mapping[str, ArmResult]) -> Table:
    """The arms by their rates."""
    rows = []
    for name, arm in arms.items():
        assert arm.rates is not None
        spread = "" if arm.spread is None else f"{arm.spread:.0%}"
        rates = f"{arm.rates.output_throughput:.0f}", spread, f"{arm.rates.request_throughput:.2f}"
        rows.append((name, *rates, f"{arm.extra['warm_up_s']:.1f}"))
    return Table(("arm", "tokens/s", "spread", "requests/s", "warm-up, s"), rows)


def check_table(arms: Mapping[str, ArmResult], num_output_tokens: int) -> Table:
    """The arms by how their tokens compare with jbatch's."""
    rows = []
    for name, arm in arms.items():
        check: dict[str, Any] = arm.extra["check"]
        gap = f"{check['largest_gap']:.1g}" if check["near_ties"] else ""
        same = f"{check['equal']} of {check['requests']}"
        rows.append(
            (name, same, f"{check['near_ties']}", gap, f"{compared_share(arm, num_output_tokens):.0%}")
        )
    return Table(("arm", "same tokens, requests", "near-ties", "largest gap, logits", "compared"), rows)


def _ratio(value: Any) -> str:
    return f"no ratio: {value['refused']}" if isinstance(value, dict) else f"{value:.2f}x"
