"""`jbatch bench batching`: the ladder on one or more workloads, measured, printed and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.claims import claimed
from bench.flags import Experiment
from bench.ladder import gain_tables, tables
from bench.ladder.arms import ARMS, Arm, choose_arms
from bench.ladder.gains import gains
from bench.ladder.ladder import best_sizes, climb, offered_load, sweep
from bench.ladder.subject import DEMO_SCALE, LLMSubject, find_model
from bench.measure import manifest
from bench.measure.models import DEMO
from bench.options import Setting
from bench.results import ArmResult, Results, SweepPoint, describe, write
from bench.workloads.lengths import SCENARIOS
from bench.workloads.workload import Workload, check_options, make_workload
from jbatch.cli.tables import Page
from jbatch.config import EngineConfig
from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import load_config
from jbatch.progress import say

BURST_BATCHES = 8  # of a burst


def run_batching(
    experiment: Experiment, setting: Setting, engine_options: dict[str, Any], workload_options: dict[str, Any]
) -> list[Results]:
    """Measure, print and write an experiment; each file is up to date after each repeat.

    Raises:
      ConfigError, WorkloadError, TraceError: before any work, for what cannot be measured as it is described.
    """
    arms = choose_arms(experiment.arms)
    options = {"max_num_seqs": 16, "seed": setting.seed} | samplers(setting) | engine_options
    workloads = make_workloads(experiment, setting, options, workload_options)
    paths = _paths(experiment)
    with claimed(experiment.output_json, experiment.output_dir):
        subject = LLMSubject(
            experiment.model,
            max(w.longest for w in workloads),
            options,
            not setting.no_floor,
            dict.fromkeys(arm.mode for arm in arms),
        )
        try:
            every = _measure_all(setting, subject, arms, workloads, paths, experiment.details)
        finally:
            subject.close()
    return every


def _measure_all(
    setting: Setting,
    subject: LLMSubject,
    arms: Sequence[Arm],
    workloads: Sequence[Workload],
    paths: Sequence[Path | None],
    details: bool,
) -> list[Results]:
    """The results of each workload, printed as soon as they are there."""
    out, every = Page(), list[Results]()
    about = manifest.collect() | subject.about | {"setting": dataclasses.asdict(setting)}
    for workload, path in zip(workloads, paths, strict=True):
        every.append(_measure(setting, subject, arms, workload, about, path, out))
        tables.print_ladder(out, every[-1], details)
    gain_tables.print_gains(out, every, details)
    return every


def make_workloads(
    experiment: Experiment, setting: Setting, engine_options: dict[str, Any], workload_options: dict[str, Any]
) -> list[Workload]:
    """A workload for each dataset: scenarios at a quarter of their lengths for the demo model, in bursts of 8
    batches."""
    check_options(experiment.dataset_names, workload_options)
    engine = EngineConfig(**engine_options)
    path, _ = find_model(experiment.model)
    config = load_config(path)
    workloads = []
    for name in experiment.dataset_names:
        options: dict[str, Any] = {}
        if experiment.model == DEMO and name in SCENARIOS:
            options["length_scale"] = DEMO_SCALE
        if name == "bursty_traffic":
            options["burst_size"] = BURST_BATCHES * engine.max_num_seqs
        workload = make_workload(
            name,
            num_prompts=setting.num_prompts,
            seed=setting.seed,
            vocab_size=config.vocab_size,
            max_model_len=engine.max_model_len or config.context_len,
            **options | workload_options,
        )
        workloads.append(workload)
    return workloads


def samplers(setting: Setting) -> dict[str, Any]:
    """The engine option that compiles nothing that greedy requests do not need."""
    return {"samplers": ("greedy",)} if setting.temperature == 0 else {}


def _paths(experiment: Experiment) -> list[Path | None]:
    """The file of each dataset's results; None: they are only printed."""
    names = experiment.dataset_names
    if experiment.output_dir is not None:
        return [experiment.output_dir / f"batching-{name}.json" for name in names]
    if experiment.output_json is not None and len(names) > 1:
        raise ConfigError("output_json", str(experiment.output_json), "holds one dataset; use --output-dir")
    return [experiment.output_json] * len(names)


def _measure(
    setting: Setting,
    subject: LLMSubject,
    arms: Sequence[Arm],
    workload: Workload,
    about: dict[str, Any],
    path: Path | None,
    out: Page,
) -> Results:
    """One workload's results; their file is up to date after each repeat."""
    if setting.load is not None:
        workload, capacity, factor = offered_load(subject, workload, ARMS["continuous"], setting.load)
        about = about | {"load": {"of_capacity": setting.load, "capacity_requests_per_s": capacity}}
        out.print(
            f"{workload.name}: continuous batching serves {capacity:.2f} requests/s; arrivals are rescaled "
            f"by {factor:.6g}, so that {setting.load:g} times that are offered"
        )
    curves: dict[str, list[SweepPoint]] = {}

    def results(done: dict[str, ArmResult]) -> Results:
        seen = about | {"clocks_after": manifest.clocks()}
        named = gains(done, workload, setting.max_concurrency)
        return Results("batching", seen, describe(workload), done, curves, named)

    def save(done: dict[str, ArmResult]) -> None:
        if path is not None:
            write(path, results(done))

    if setting.sweep:
        curves |= sweep(subject, arms, workload, setting, say)
        save({})  # it took long
    return results(climb(subject, arms, workload, setting, best_sizes(curves), save, say))
