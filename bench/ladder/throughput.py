"""`jbatch bench throughput` and `jbatch bench latency`: one arm, continuous batching, as vLLM measures it."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import claimed
from bench.flags import Experiment
from bench.ladder import tables
from bench.ladder.arms import ARMS
from bench.ladder.batching import make_workloads, samplers
from bench.ladder.ladder import climb
from bench.ladder.subject import LLMSubject
from bench.measure import manifest
from bench.options import LatencySetting, Setting
from bench.results import ArmResult, Results, describe, write
from bench.workloads.workload import Workload
from jbatch.cli.tables import Page
from jbatch.config import EngineConfig
from jbatch.errors import JBatchError
from jbatch.progress import say

PERCENTILES = (10, 25, 50, 75, 90, 99)
CONTINUOUS = ARMS["continuous"]


class ArmFailed(JBatchError):
    """The one arm of a command did not run."""


def run_throughput(
    experiment: Experiment, setting: Setting, engine_options: dict[str, Any], workload_options: dict[str, Any]
) -> Results:
    """Run one workload through one engine. Raises what `run_batching` raises, and ArmFailed."""
    options: dict[str, Any] = {"max_num_seqs": EngineConfig.max_num_seqs, "seed": setting.seed}
    options |= samplers(setting) | engine_options
    (workload,) = make_workloads(experiment, setting, options, workload_options)
    with claimed(experiment.output_json):
        arm, about = _run(experiment.model, options, workload, setting)
        assert arm.rates is not None
        total = workload.num_prompt_tokens + workload.num_output_tokens
        figures = {
            "elapsed_time": arm.rates.duration_s - arm.rates.idle_s,
            "num_requests": len(workload.items),
            "total_num_tokens": total,
            "requests_per_second": arm.rates.request_throughput,
            "tokens_per_second": arm.rates.total_token_throughput,
        }
        arms = {CONTINUOUS.name: arm}
        results = Results("throughput", about, describe(workload), arms, extra=figures)
        _save(experiment.output_json, results)
    out = Page()
    out.print(tables.describe_workload(results.workload))
    out.print(
        f"Throughput: {arm.rates.request_throughput:.2f} requests/s, "
        f"{arm.rates.total_token_throughput:.2f} total tokens/s, "
        f"{arm.rates.output_throughput:.2f} output tokens/s"
    )
    out.print(f"Total num prompt tokens:  {workload.num_prompt_tokens}")
    out.print(f"Total num output tokens:  {workload.num_output_tokens}")
    return results


def run_latency(experiment: Experiment, setting: LatencySetting, engine_options: dict[str, Any]) -> Results:
    """Measure the time of one batch, again and again. Raises what `run_batching` raises, and ArmFailed."""
    passes = Setting(setting.batch_size, setting.seed, setting.num_iters)
    options = {"max_num_seqs": setting.batch_size, "seed": setting.seed} | samplers(passes) | engine_options
    lengths = {"input_len": setting.input_len, "output_len": setting.output_len}
    (workload,) = make_workloads(experiment, passes, options, lengths)
    with claimed(experiment.output_json):
        arm, about = _run(experiment.model, options, workload, passes, setting.num_iters_warmup)
        seconds = [workload.num_output_tokens / speed for speed in arm.repeats]
        points = dict(zip(PERCENTILES, np.percentile(seconds, PERCENTILES).tolist(), strict=True))
        figures = {"avg_latency": statistics.mean(seconds), "latencies": seconds, "percentiles": points}
        arms = {CONTINUOUS.name: arm}
        results = Results("latency", about, describe(workload), arms, extra=figures)
        _save(experiment.output_json, results)
    out = Page()
    out.print(tables.describe_workload(results.workload))
    out.print(f"Avg latency: {figures['avg_latency']} seconds")
    for percentile, value in points.items():
        out.print(f"{percentile}% percentile latency: {value} seconds")
    return results


def _run(
    model: str, options: dict[str, Any], workload: Workload, setting: Setting, num_warm_up: int = 0
) -> tuple[ArmResult, dict[str, Any]]:
    """Continuous batching's result, after passes that do not count, and the manifest."""
    subject = LLMSubject(model, workload.longest, options, measure_floor=False)
    try:
        own = CONTINUOUS._replace(policy=subject.policy)  # which may be tuned
        if num_warm_up:
            warm_up = dataclasses.replace(setting, repeats=num_warm_up)
            _checked(climb(subject, [own], workload, warm_up))
        arm = _checked(climb(subject, [own], workload, setting, say=say))
        about = {"setting": dataclasses.asdict(setting), "clocks_after": manifest.clocks()}
        return arm, manifest.collect() | subject.about | about
    finally:
        subject.close()


def _checked(arms: dict[str, ArmResult]) -> ArmResult:
    (arm,) = arms.values()
    if arm.not_run is not None:
        raise ArmFailed(f"{arm.label}: not run: {arm.not_run}")
    return arm


def _save(path: Path | None, results: Results) -> None:
    if path is not None:
        write(path, results)
