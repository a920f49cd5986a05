"""`jbatch bench compare`: jbatch against PyTorch on one device, with the same weights and requests.

Every arm's tokens are compared with jbatch's before it is timed; then all arms run in turn, several times.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.claims import claimed
from bench.compare.arms import choose_arms
from bench.compare.measurement import Measurement, measure, result
from bench.compare.ratios import ratios
from bench.compare.stage import Stage
from bench.flags import Comparison, Experiment
from bench.options import Setting
from bench.results import Results, describe, write
from jbatch.errors import ConfigError

LEAST_REPEATS = 3


def compare(
    comparison: Comparison,
    setting: Setting,
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
) -> Results:
    """Check, measure, print and write; the file is up to date after each arm that is built, and each repeat.

    Raises:
      ConfigError, WorkloadError, TraceError: before any work, for what cannot be compared as it is described.
      JBatchError, and what LLM raises: where jbatch itself cannot run, as there is nothing to compare with.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes what PyTorch needs
    from bench.ladder.batching import make_workloads, samplers
    from bench.ladder.subject import LLMSubject, find_model

    arms = choose_arms(comparison.arms or [])
    if setting.repeats < LEAST_REPEATS:
        raise ConfigError("repeats", setting.repeats, f"must be at least {LEAST_REPEATS}")
    options = {"max_num_seqs": 16, "seed": setting.seed} | samplers(setting) | engine_options
    experiment = Experiment(comparison.model, [comparison.dataset_name])
    (workload,) = make_workloads(experiment, setting, options, workload_options | {"closed": True})
    options = _with_pages(comparison.model, workload.longest, options)
    model_dir, _ = find_model(comparison.model)
    path, record = comparison.output_json, comparison.record
    with claimed(path), claimed(record), tempfile.TemporaryDirectory() as scratch:
        subject = LLMSubject(comparison.model, workload.longest, options, measure_floor=False)
        stage = Stage(subject, workload, model_dir, record or Path(scratch) / "plans.jsonl")
        measurements = [Measurement(arm) for arm in arms]
        try:
            return _compare(stage, measurements, setting.repeats, path)
        finally:
            for measurement in measurements:
                measurement.close()
            stage.close()
            subject.close()


def _compare(stage: Stage, measurements: Sequence[Measurement], repeats: int, path: Path | None) -> Results:
    from bench.measure import manifest

    about = manifest.collect() | stage.subject.about | {"versions": versions(), "arrivals": "all at time 0"}

    def results() -> Results:
        arms = {measurement.arm.name: result(measurement, stage) for measurement in measurements}
        seen = about | {"clocks_after": manifest.clocks()}
        return Results("compare", seen, describe(stage.workload), arms, gains=ratios(arms, stage.workload))

    measure(stage, measurements, repeats, lambda: _save(path, results))
    return results()


def versions() -> dict[str, str | None]:
    """The versions of what the arms are made of, by package; None for what is not installed."""
    from importlib import metadata

    installed: dict[str, str | None] = {}
    for module, package in (
        ("torch", "torch"),
        ("transformers", "transformers"),
        ("triton", "triton"),
        ("flash_attn", "flash-attn"),
        ("flash_attn_interface", "flash-attn-3"),
    ):
        try:
            there = importlib.util.find_spec(module) is not None
            installed[package] = metadata.version(package) if there else None
        except metadata.PackageNotFoundError:
            installed[package] = "unknown"
    return installed


def _with_pages(model: str, longest: int, options: dict[str, Any]) -> dict[str, Any]:
    """A cache that holds every row at its longest, and no more: other engines need memory too."""
    from bench.ladder.subject import engine_options
    from jbatch.config import EngineConfig

    if {"num_pages", "kv_cache_memory_bytes"} & options.keys():
        return options
    _, complete = engine_options(model, longest, options)
    config = EngineConfig(**complete)
    per_sequence = -(-(config.max_model_len or longest) // config.page_size)
    return options | {"num_pages": 1 + config.max_num_seqs * per_sequence}


def _save(path: Path | None, results: Callable[[], Results]) -> None:
    if path is not None:
        write(path, results())
