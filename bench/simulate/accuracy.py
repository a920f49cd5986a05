"""How far a simulation is from the machine whose costs it runs on, on workloads that they were not fitted to.

    python -m bench.simulate.accuracy [--model demo|150m|DIR] [--num-prompts N] [--repeats N] [--json F]

A machine is not the same from one minute to the next. So costs are measured between the repeats of the
workloads, and each repeat is simulated on those from just before and just after it: the error of a figure is
the median of the repeats' errors. A real run does not repeat itself either, so the spread of its repeats
stands beside it. An error beyond 5 % (10 % of a p99) and beyond that spread is a miss, and is said to be one.
What was measured while the machine was slow is measured again. Leave it alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.ladder.arms import ARMS
from bench.ladder.ladder import offered_load, run_once
from bench.ladder.subject import LLMSubject, Subject
from bench.measure import manifest, measures
from bench.measure.models import DEMO
from bench.options import Setting
from bench.simulate.calibrate import calm_of, measure, table_of
from bench.simulate.calm import Calm
from bench.simulate.command import measured_by
from bench.simulate.subject import Simulated, SimulatedSubject
from bench.workloads.lengths import SCENARIOS
from bench.workloads.workload import Workload, make_workload
from jbatch.cli.tables import Page, Table

CONTINUOUS = ARMS["continuous"]
LOAD = 0.8  # of the simulated capacity, for requests that come one by one
COLD = {"enable_prefix_caching": False}  # as LLMSubject runs
SCALE = 0.25  # of the scenarios' lengths
PAGE_SIZE = 16  # so small that several sequences are preempted where pages are few
ALLOWED, ALLOWED_P99 = 0.05, 0.1
POOL_SHARE = 0.4  # of the pages that as many of the longest requests would fill: some are preempted


class Sizes(NamedTuple):
    """What a model is measured with: a repeat takes a minute or two."""

    max_num_seqs: int
    max_model_len: int
    num_prompts: int


SIZES = {DEMO: Sizes(16, 1024, 1024), "150m": Sizes(8, 512, 128)}


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
    simulated: float  # median of the simulations, one for each repeat
    errors: tuple[float, ...]  # of each simulation, relative to its repeat

    @property
    def error(self) -> float:
        """The median of the repeats' errors."""
        return statistics.median(self.errors)

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
    case: Case, real: Sequence[Mapping[str, float]], simulated: Sequence[Mapping[str, float]]
) -> list[Comparison]:
    """A comparison for each figure that has a scale; each repeat has its simulation."""
    made = []
    for figure in simulated[0]:
        if figure == "preempted":
            continue
        measured = [each[figure] for each in real]
        computed = [each[figure] for each in simulated]
        middle = statistics.median(measured)
        errors = tuple(ours / theirs - 1 for ours, theirs in zip(computed, measured, strict=True))
        spread = (max(measured) - min(measured)) / middle
        made.append(Comparison(case.name, figure, middle, spread, statistics.median(computed), errors))
    return made


class Passes(NamedTuple):
    """The figures of a workload, repeat by repeat."""

    real: list[dict[str, float]]
    simulated: list[dict[str, float]]


class Plan(NamedTuple):
    """What is measured. Sizes of None are those of SIZES."""

    model: str
    num_prompts: int | None
    repeats: int
    seed: int
    max_num_seqs: int | None = None
    max_model_len: int | None = None


def run_accuracy(plan: Plan) -> dict[str, Any]:
    """Measure, simulate and print; the result, for a file."""
    sizes = SIZES.get(plan.model, SIZES[DEMO])
    max_model_len = plan.max_model_len or sizes.max_model_len
    slots = plan.max_num_seqs or sizes.max_num_seqs
    options = {"max_num_seqs": slots, "page_size": PAGE_SIZE, "samplers": ("greedy",)}
    subject = LLMSubject(plan.model, max_model_len, options, measure_floor=False)
    subjects = {subject.llm.runner.shape.num_pages: subject}
    try:
        calm = calm_of(subject)
        first = measured_by(table_of(subject, [measure(subject, plan.seed, calm)]), COLD)
        every = cases(first, plan.num_prompts or sizes.num_prompts, plan.seed)
        for pages in (case.num_pages for case in every if case.num_pages):
            fewer = options | {"num_pages": pages}
            subjects[pages] = LLMSubject(plan.model, max_model_len, fewer, measure_floor=False)
        passes = {case.name: Passes([], []) for case in every}
        runs = [(case, subjects[case.num_pages or first.num_pages]) for case in every]
        for _ in _repeats(plan, runs, passes, calm):
            Page().print(f"repeat {len(passes[every[0].name].real)} of {plan.repeats}")
        Page().print(str(calm))
    finally:
        for each in subjects.values():
            each.close()
    return _report(plan, every, passes)


def _repeats(
    plan: Plan, runs: Sequence[tuple[Case, LLMSubject]], passes: Mapping[str, Passes], calm: Calm
) -> Iterator[None]:
    """Run each workload for real, and on costs from before and after; each engine on its own, for steps cost
    less where there are fewer pages to go to."""
    subjects = dict.fromkeys(subject for _, subject in runs)
    before = {subject: measure(subject, plan.seed + 1, calm) for subject in subjects}
    for repeat in range(plan.repeats):
        for case, subject in runs:
            passes[case.name].real.append(calm.run(partial(figures_of, subject, case.workload)))
        after = {subject: measure(subject, plan.seed + 2 + repeat, calm) for subject in subjects}
        for case, subject in runs:
            sim = measured_by(table_of(subject, [before[subject], after[subject]]), COLD)
            simulated = SimulatedSubject(sim, seed=plan.seed + repeat)
            passes[case.name].simulated.append(figures_of(simulated, case.workload))
        before = after
        yield


def _report(plan: Plan, every: Sequence[Case], passes: Mapping[str, Passes]) -> dict[str, Any]:
    """Print what came of it; the same as a file has it."""
    made: list[Comparison] = []
    for case in every:
        comparisons = compare(case, *passes[case.name])
        _print(comparisons, passes[case.name])
        made += comparisons
    missed = [comparison for comparison in made if comparison.missed]
    Page().print(f"{len(missed)} of {len(made)} figures missed")
    rows = [
        comparison._asdict() | {"error": comparison.error, "missed": comparison.missed} for comparison in made
    ]
    return {
        "schema": 2,
        "kind": "accuracy",
        "manifest": manifest.collect(),
        "plan": plan._asdict(),
        "rows": rows,
        "passes": {name: each._asdict() for name, each in passes.items()},
    }


def _print(comparisons: Sequence[Comparison], passes: Passes) -> None:
    out = Page()
    out.print(f"\n{comparisons[0].case}\n")
    out.show(errors_table(comparisons))
    real, simulated = (", ".join(f"{each['preempted']:.0f}" for each in side) for side in passes)
    out.print(f"preempted: {real}; simulated: {simulated}")


def errors_table(comparisons: Sequence[Comparison]) -> Table:
    """The figures of one workload by how far off they were."""
    headings = ("figure", "real, s", "spread", "simulated, s", "error", "error from", "error to", "missed")
    rows = []
    for each in comparisons:
        real, simulated = f"{each.real:.4g}", f"{each.simulated:.4g}"
        errors = (f"{error:+.1%}" for error in (each.error, min(each.errors), max(each.errors)))
        missed = "missed" if each.missed else ""
        rows.append((each.figure, real, f"{each.spread:.0%}", simulated, *errors, missed))
    return Table(headings, rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEMO, help="demo, 150m (random weights), or a model directory")
    parser.add_argument("--num-prompts", type=int, help="of each workload; 1024, of 150m 128")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--max-num-seqs", type=int, help="16, of 150m 8")
    parser.add_argument("--max-model-len", type=int, help="1024, of 150m 512")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    args = vars(parser.parse_args())
    path = args.pop("json")
    result = run_accuracy(Plan(**args))
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
