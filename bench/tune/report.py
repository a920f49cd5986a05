"""What tuning found, for people."""

from __future__ import annotations

from bench.simulate.subject import Simulated
from bench.tune.aim import Aim, Figures
from bench.tune.candidate import Candidate
from bench.tune.search import frontier
from bench.tune.tune import Tuned
from jbatch.cli.tables import Page, Table
from jbatch.sim.cost import CostTable

GOALS = {"throughput": "output tokens per second", "p99-ttft": "the 99th percentile of TTFT"}


def print_tuned(out: Page, sim: Simulated, tuned: Tuned, aim: Aim, wall_s: float) -> None:
    """The frontier, what was chosen, and what it should gain."""
    source = "costs measured on " if isinstance(sim.costs, CostTable) else ""
    out.print(f"simulated: {sim.about.get('model')} on {source}{sim.about.get('device')}")
    pages = f"{(sim.num_pages - 1) * sim.config.page_size} tokens of KV cache"
    out.print(f"{len(tuned.found.tried)} arms in {wall_s:.0f} s, {pages}\n")
    out.show(frontier_table(tuned))
    out.print("arms: those that none beats in both tokens/s and TTFT, the default, and the best (tuned)\n")
    if not tuned.found.complete:
        out.print("The time budget ended before the search did: the best so far.")
    out.print(_options(tuned))
    _print_gain(out, tuned, aim)


def frontier_table(tuned: Tuned) -> Table:
    """Candidates that none beats in both, the default, and the best."""
    tried = tuned.found.tried
    shown = dict.fromkeys([*frontier(tried), tuned.default, tuned.found.best])
    sizes = "at once", "tokens of a step", "page size"
    figures = "tokens/s", "TTFT p99, ms", "ITL p99, ms"
    rows = [
        (_mark(candidate, tuned), *_cells(candidate, tried[candidate]))
        for candidate in sorted(shown, key=lambda c: -tried[c].output_throughput)
    ]
    return Table(("arm", "policy", "admission", *sizes, *figures), rows, num_names=3)


def _mark(candidate: Candidate, tuned: Tuned) -> str:
    marks = {tuned.default: "default", tuned.found.best: "tuned"}
    return "both" if tuned.default == tuned.found.best == candidate else marks.get(candidate, "")


def _cells(candidate: Candidate, figures: Figures) -> tuple[str, ...]:
    names = candidate.policy, candidate.admission
    sizes = (candidate.max_num_seqs, candidate.max_num_batched_tokens, candidate.page_size)
    times = _ms(figures.p99_ttft), _ms(figures.p99_itl)
    return (*names, *map(str, sizes), f"{figures.output_throughput:.0f}", *times)


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _options(tuned: Tuned) -> str:
    return "tuned: " + ", ".join(f"{name}={value}" for name, value in tuned.options.items())


def _print_gain(out: Page, tuned: Tuned, aim: Aim) -> None:
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
            f"  {name:<9}{figures.output_throughput:8.0f} tokens/s, TTFT p99 {_ms(figures.p99_ttft)} ms, "
            f"ITL p99 {_ms(figures.p99_itl)} ms{kept}"
        )
    out.print(f"step shapes to compile: {tuned.best_buckets}, and {tuned.default_buckets} by default")
    if aim.name == "p99-ttft" and not aim.allows(best, default):
        out.print(f"There its throughput is below {aim.floor:.0%} of the defaults'.")
