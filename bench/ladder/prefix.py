"""`jbatch bench prefix`: the same requests without a prefix cache, with an empty one, and once more."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from bench.claims import claimed
from bench.flags import Experiment
from bench.ladder import tables
from bench.ladder.arms import ARMS
from bench.ladder.batching import make_workloads, samplers
from bench.ladder.subject import LLMSubject
from bench.measure import manifest, measures
from bench.measure.drive import drive
from bench.options import Setting
from bench.results import describe
from bench.workloads.workload import Workload
from jbatch.cli.tables import Page, Table, meanings
from jbatch.engine.engine import Engine
from jbatch.progress import say

PASSES = {
    "off": "no prefix cache",
    "cold": "an empty cache: what is found was computed in this pass",
    "warm": "the same requests again: whole prompts were computed in the pass before",
}


class Pass(NamedTuple):
    """One run of the workload."""

    prefill_tokens: int  # of prompts, that were computed
    hit_rate: float  # of the prompts' tokens, those that were found
    seconds: float
    mean_ttft_ms: float


def run_prefix(
    experiment: Experiment, setting: Setting, engine_options: dict[str, Any], workload_options: dict[str, Any]
) -> dict[str, list[Pass]]:
    """Measure, print and write. Raises what `run_batching` raises."""
    options: dict[str, Any] = {"max_num_seqs": 16, "seed": setting.seed}
    options |= samplers(setting) | engine_options
    (workload,) = make_workloads(experiment, setting, options, workload_options)
    with claimed(experiment.output_json):
        subject = LLMSubject(experiment.model, workload.longest, options, measure_floor=False)
        try:
            passes = measure(subject, workload, setting)
        finally:
            subject.close()
        if experiment.output_json is not None:
            about = manifest.collect() | subject.about | {"setting": dataclasses.asdict(setting)}
            rows = {name: [each._asdict() for each in made] for name, made in passes.items()}
            content = {"schema": 1, "kind": "prefix", "manifest": about, "workload": describe(workload)}
            text = json.dumps(content | {"passes": rows}, indent=1, allow_nan=False)
            Path(experiment.output_json).write_text(text + "\n")
    _print(workload, passes)
    return passes


def measure(subject: LLMSubject, workload: Workload, setting: Setting) -> dict[str, list[Pass]]:
    """All passes in turn, `repeats` times; a cold one begins with a fresh engine, and the warm one goes on
    with it."""
    made: dict[str, list[Pass]] = {name: [] for name in PASSES}
    numbers = itertools.count(1)

    def run(name: str, engine: Engine) -> None:
        made[name].append(_run(engine, workload, setting))
        number = f"pass {next(numbers)} of {setting.repeats * len(PASSES)}"
        say(f"{number}: {name}, {made[name][-1].seconds:.1f} s")

    for _ in range(setting.repeats):
        run("off", _engine(subject, caching=False))
        engine = _engine(subject, caching=True)
        run("cold", engine)
        run("warm", engine)
    return made


def _engine(subject: LLMSubject, *, caching: bool) -> Engine:
    subject.llm.config = dataclasses.replace(subject.llm.config, enable_prefix_caching=caching)
    return subject.new_engine(ARMS["continuous"], subject.max_num_seqs)


def _run(engine: Engine, workload: Workload, setting: Setting) -> Pass:
    before = engine.summary
    run = drive(engine, workload, max_concurrency=setting.max_concurrency, temperature=setting.temperature)
    after, latencies = run.summary, measures.latencies(run)
    looked_up = after.looked_up - before.looked_up
    assert latencies.ttft is not None
    return Pass(
        after.useful_prefill_tokens - before.useful_prefill_tokens,
        (after.found - before.found) / looked_up if looked_up else 0.0,
        run.duration_s - run.idle_s,
        latencies.ttft.mean,
    )


def _print(workload: Workload, passes: dict[str, list[Pass]]) -> None:
    out = Page()
    out.print(f"{tables.describe_workload(describe(workload))}\n")
    out.show(passes_table(passes))
    out.print(meanings(PASSES))
    out.print(f"Counts are of the first of {len(passes['off'])} repeats, times are medians of all.")


def passes_table(passes: dict[str, list[Pass]]) -> Table:
    """The arms by what they computed of prompts, and how long that took."""
    rows = []
    for name, made in passes.items():
        first = made[0]
        seconds, ttft = (
            statistics.median(values) for values in zip(*(each[2:] for each in made), strict=True)
        )
        counts = f"{first.prefill_tokens}", f"{first.hit_rate:.0%}"
        rows.append((name, *counts, f"{seconds:.2f}", f"{ttft:.0f}"))
    return Table(("arm", "prompt tokens computed", "cached", "time, s", "mean TTFT, ms"), rows)
