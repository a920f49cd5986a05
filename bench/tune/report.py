"""What tuning found, for people."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Column, Table

from bench.simulate.subject import Simulated
from bench.tune.aim import Aim, Figures
from bench.tune.candidate import Candidate
from bench.tune.search import frontier
from bench.tune.tune import Tuned
from jbatch.sim.cost import CostTable

GOALS = {"throughput": "output tokens per second", "p99-ttft": "the 99th percentile of TTFT"}


def print_tuned(out: Console, sim: Simulated, tuned: Tuned, aim: Aim, wall_s: float) -> None:
    """The frontier, what was chosen, and what it should gain."""
    source = "costs measured on " if isinstance(sim.costs, CostTable) else ""
    out.print(f"simulated: {sim.about.get('model')} on {source}{sim.about.get('device')}")
    pages = f"{(sim.num_pages - 1) * sim.config.page_size} tokens of KV cache"
    out.print(f"{len(tuned.found.tried)} candidates in {wall_s:.0f} s, {pages}\n")
    out.print(_frontier(tuned))
    if not tuned.found.complete:
        out.print("The time budget ended before the search did: the best so far.")
    out.print(_options(tuned))
    _print_gain(out, tuned, aim)


def _frontier(tuned: Tuned) -> Table:
    """Candidates that none beats in both, the default, and the best."""
    tried = tuned.found.tried
    shown = dict.fromkeys([*frontier(tried), tuned.default, tuned.found.best])
    headings = "seqs", "tokens", "page", "policy", "admission", "tokens/s", "p99 TTFT", "p99 ITL", "preempted"
    table = Table("", *(Column(name, justify="right", no_wrap=True) for name in headings), box=box.SIMPLE)
    for candidate in sorted(shown, key=lambda c: -tried[c].output_throughput):
        table.add_row(_mark(candidate, tuned), *_cells(candidate, tried[candidate]))
    return table


def _mark(candidate: Candidate, tuned: Tuned) -> str:
    marks = {tuned.default: "default", tuned.found.best: "tuned"}
    return "default, tuned" if tuned.default == tuned.found.best == candidate else marks.get(candidate, "")


def _cells(candidate: Candidate, figures: Figures) -> tuple[str, ...]:
    sizes = (candidate.max_num_seqs, candidate.max_num_batched_tokens, candidate.page_size)
    times = (f"{value:.3g} ms" for value in (figures.p99_ttft, figures.p99_itl))
    rate = f"{figures.output_throughput:.0f}"
    names = candidate.policy, candidate.admission
    return (*map(str, sizes), *names, rate, *times, f"{figures.num_preempted}")


def _options(tuned: Tuned) -> str:
    return "tuned: " + ", ".join(f"{name}={value}" for name, value in tuned.options.items())


def _print_gain(out: Console, tuned: Tuned, aim: Aim) -> None:
    """On the draw that was held out."""
    default, best = tuned.default_held, tuned.best_held
    goal = GOALS.get(aim.name) or "requests per second that keep " + ", ".join(
        f"{name} <= {limit:g} ms" for name, limit in aim.limits.items()
    )
    out.print(
        f"predicted, on another draw of the workload: {aim.gain(best, default):.2f} times as good as the "
        f"defaults in {goal}"
    )
    for name, figures in (("defaults", default), ("tuned", best)):
        kept = f", {figures.goodput:.3g} requests/s in the limits" if aim.limits else ""
        out.print(
            f"  {name:<9}{figures.output_throughput:8.0f} tokens/s, p99 TTFT {figures.p99_ttft:.3g} ms, "
            f"p99 ITL {figures.p99_itl:.3g} ms{kept}"
        )
    if aim.name == "p99-ttft" and not aim.allows(best, default):
        out.print(f"There its throughput is below {aim.floor:.0%} of the defaults'.")
