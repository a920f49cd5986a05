"""How far a simulation is from the machine whose costs it runs on, on workloads that they were not fitted to.

    python -m bench.simulate.accuracy --costs FILE [--model NAME] [--num-prompts N] [--repeats N] [--json F]

Each workload runs a few times on the model, and once simulated. What counts is the error of the median; a
real run does not repeat itself either, so the spread of its repeats stands beside it. An error beyond 5 %
(10 % of a p99) and beyond that spread is a miss, and is said to be one. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Column, Table

from bench.ladder.arms import ARMS
from bench.ladder.ladder import offered_load, run_once
from bench.ladder.subject import LLMSubject, Subject
from bench.ladder.tables import console
from bench.measure import manifest, measures
from bench.measure.shapes import DEMO
from bench.options import Setting
from bench.simulate.command import simulated_by
from bench.simulate.subject import Simulated, SimulatedSubject
from bench.workloads.lengths import SCENARIOS
from bench.workloads.workload import Workload, make_workload

CONTINUOUS = ARMS["continuous"]
LOAD = 0.8  # of the simulated capacity, for requests that come one by one
SCALE = 0.25  # of the scenarios' lengths
ALLOWED, ALLOWED_P99 = 0.05, 0.1
POOL_SHARE = 0.4  # of the pages that as many of the longest requests would fill: some are preempted


class Case(NamedTuple):
    """A workload, and the pages that it runs on; None: as many as the costs were measured with."""

    name: str
    workload: Workload
    num_pages: int | None = None


class Comparison(NamedTuple):
    """One figure of one workload. Times are seconds."""

    case: str
    figure: str
    real: float  # median of the repeats
    spread: float  # (most - least) / median of the repeats
    simulated: float

    @property
    def error(self) -> float:
        """Of the simulation, relative to the median."""
        return self.simulated / self.real - 1

    @property
    def missed(self) -> bool:
        """Whether it is larger than what is allowed, and than the repeats differ."""
        allowed = ALLOWED_P99 if "p99" in self.figure else ALLOWED
        return abs(self.error) > max(allowed, self.spread)


def cases(sim: Simulated, num_prompts: int, seed: int) -> list[Case]:
    """Four workloads, one of which preempts, and one whose requests come one by one."""

    def work(name: str, **options: Any) -> Workload:
        return make_workload(
            name,
            num_prompts=num_prompts,
            seed=seed,
            vocab_size=sim.vocab_size,
            max_model_len=sim.max_model_len,
            length_scale=SCALE,
            **options,
        )

    one_by_one, *_ = offered_load(
        SimulatedSubject(sim), work("uniform_short", request_rate=1.0), CONTINUOUS, LOAD
    )
    mixed, bursts = work(SCENARIOS[1]), work("bursty_traffic", burst_size=max(1, num_prompts // 2))
    longest = -(-mixed.longest // sim.config.page_size)
    few = 1 + max(longest, round(POOL_SHARE * longest * sim.config.max_num_seqs))
    return [
        Case("mixed_length", mixed),
        Case("uniform_short, one by one", one_by_one),
        Case("bursty_traffic", bursts),
        Case("mixed_length, few pages", mixed, few),
    ]


def figures_of(subject: Subject, workload: Workload) -> dict[str, float]:
    """What is compared of a pass, in seconds, and how often it preempted."""
    run, _, counts, _ = run_once(subject, CONTINUOUS, subject.max_num_seqs, workload, Setting())
    found = {"makespan": run.duration_s - run.idle_s, "preempted": float(counts.num_preempted)}
    latencies = measures.latencies(run).to_json()
    for latency in ("ttft", "tpot", "e2el"):
        for part in ("p50", "p90", "p99"):
            milliseconds = latencies[f"{part}_{latency}_ms"]
            if milliseconds:
                found[f"{part} {latency.upper()}"] = milliseconds / 1e3
    return found


def compare(
    case: Case, real: Sequence[Mapping[str, float]], simulated: Mapping[str, float]
) -> list[Comparison]:
    """A comparison for each figure that has a scale."""
    made = []
    for figure, value in simulated.items():
        if figure == "preempted":
            continue
        measured = [each[figure] for each in real]
        middle = statistics.median(measured)
        made.append(Comparison(case.name, figure, middle, (max(measured) - min(measured)) / middle, value))
    return made


def run_accuracy(costs: Path, model: str, num_prompts: int, repeats: int, seed: int) -> dict[str, Any]:
    """Measure, simulate and print; the result, for a file."""
    sim = simulated_by(costs, None, model, {})
    options = dict(sim.about["engine"])
    options.pop("max_model_len", None)
    made: list[Comparison] = []
    preempted: dict[str, list[float]] = {}
    for case in cases(sim, num_prompts, seed):
        pages = case.num_pages or sim.num_pages
        subject = LLMSubject(model, sim.max_model_len, options | {"num_pages": pages}, measure_floor=False)
        try:
            real = [figures_of(subject, case.workload) for _ in range(repeats)]
        finally:
            subject.close()
        of_pages = sim._replace(num_pages=pages)
        simulated = figures_of(SimulatedSubject(of_pages, seed=seed), case.workload)
        made += compare(case, real, simulated)
        preempted[case.name] = [*(each["preempted"] for each in real), simulated["preempted"]]
        _print(made[-len(simulated) + 1 :], preempted[case.name])
    missed = [comparison for comparison in made if comparison.missed]
    console().print(f"{len(missed)} of {len(made)} figures missed")
    rows = [
        comparison._asdict() | {"error": comparison.error, "missed": comparison.missed} for comparison in made
    ]
    return {
        "schema": 1,
        "kind": "accuracy",
        "manifest": manifest.collect(),
        "rows": rows,
        "preempted": preempted,
    }


def _print(comparisons: Sequence[Comparison], preempted: Sequence[float]) -> None:
    headings = "real", "spread", "simulated", "error", ""
    table = Table(comparisons[0].case, *(Column(name, justify="right") for name in headings), box=box.SIMPLE)
    for each in comparisons:
        missed = "missed" if each.missed else ""
        real, simulated = f"{each.real:.4g} s", f"{each.simulated:.4g} s"
        table.add_row(each.figure, real, f"{each.spread:.0%}", simulated, f"{each.error:+.1%}", missed)
    out = console()
    out.print(table)
    out.print(f"preempted: {', '.join(f'{number:.0f}' for number in preempted)} (the last one simulated)")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--costs", type=Path, required=True, help="of `jbatch bench calibrate`, of this machine"
    )
    parser.add_argument("--model", default=DEMO, help="the costs' model")
    parser.add_argument("--num-prompts", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    args = parser.parse_args()
    result = run_accuracy(args.costs, args.model, args.num_prompts, args.repeats, args.seed)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
