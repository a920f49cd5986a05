"""`jbatch bench throughput` and `jbatch bench latency`: one arm, continuous batching, as vLLM measures it."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from bench import manifest, tables
from bench.arms import ARMS
from bench.batching import Batching, make_workloads
from bench.ladder import climb
from bench.options import LatencySetting, Setting
from bench.results import ArmResult, Results, claim_file, describe, write
from bench.subject import LLMSubject
from jbatch.config import EngineConfig
from jbatch.errors import JBatchError

PERCENTILES = (10, 25, 50, 75, 90, 99)
CONTINUOUS = ARMS["continuous"]


class ArmFailed(JBatchError):
    """The one arm of a command did not run."""


def run_throughput(
    asked: Batching, setting: Setting, engine_options: dict[str, Any], workload_options: dict[str, Any]
) -> Results:
    """One workload through one engine. Raises what `run_batching` raises, and ArmFailed."""
    options = {"max_num_seqs": EngineConfig.max_num_seqs, "seed": setting.seed} | engine_options
    (workload,) = make_workloads(asked, setting, options, workload_options)
    if asked.output_json is not None:
        claim_file(asked.output_json)
    subject = LLMSubject(asked.model, workload.longest, options, measure_floor=False)
    try:
        arms = climb(subject, [CONTINUOUS], workload, setting)
        about = manifest.collect() | subject.about
    finally:
        subject.close()
    arm = _checked(arms)
    assert arm.rates is not None
    total = workload.num_prompt_tokens + workload.num_output_tokens
    extra = {
        "elapsed_time": total / arm.rates.total_token_throughput,
        "num_requests": len(workload.items),
        "total_num_tokens": total,
        "requests_per_second": arm.rates.request_throughput,
        "tokens_per_second": arm.rates.total_token_throughput,
    }
    results = Results("throughput", about, describe(workload), arms, extra=extra)
    _save(asked.output_json, results)
    out = tables.console()
    out.print(tables.describe_workload(results.workload))
    out.print(
        f"Throughput: {arm.rates.request_throughput:.2f} requests/s, "
        f"{arm.rates.total_token_throughput:.2f} total tokens/s, "
        f"{arm.rates.output_throughput:.2f} output tokens/s"
    )
    out.print(f"Total num prompt tokens:  {workload.num_prompt_tokens}")
    out.print(f"Total num output tokens:  {workload.num_output_tokens}")
    return results


def run_latency(asked: Batching, setting: LatencySetting, engine_options: dict[str, Any]) -> Results:
    """The time of one batch, again and again. Raises what `run_batching` raises, and ArmFailed."""
    options = {"max_num_seqs": setting.batch_size, "seed": setting.seed} | engine_options
    passes = Setting(setting.batch_size, setting.seed, setting.num_iters)
    lengths = {"input_len": setting.input_len, "output_len": setting.output_len}
    (workload,) = make_workloads(asked, passes, options, lengths)
    if asked.output_json is not None:
        claim_file(asked.output_json)
    subject = LLMSubject(asked.model, workload.longest, options, measure_floor=False)
    try:
        if setting.num_iters_warmup:
            warm_up = dataclasses.replace(passes, repeats=setting.num_iters_warmup)
            _checked(climb(subject, [CONTINUOUS], workload, warm_up))
        arms = climb(subject, [CONTINUOUS], workload, passes)
        about = manifest.collect() | subject.about
    finally:
        subject.close()
    seconds = [workload.num_output_tokens / speed for speed in _checked(arms).repeats]
    points = dict(zip(PERCENTILES, np.percentile(seconds, PERCENTILES).tolist(), strict=True))
    extra = {"avg_latency": statistics.mean(seconds), "latencies": seconds, "percentiles": points}
    results = Results("latency", about, describe(workload), arms, extra=extra)
    _save(asked.output_json, results)
    out = tables.console()
    out.print(tables.describe_workload(results.workload))
    out.print(f"Avg latency: {extra['avg_latency']} seconds")
    for percentile, value in points.items():
        out.print(f"{percentile}% percentile latency: {value} seconds")
    return results


def _checked(arms: dict[str, ArmResult]) -> ArmResult:
    (arm,) = arms.values()
    if arm.not_run is not None:
        raise ArmFailed(f"{arm.label}: not run: {arm.not_run}")
    return arm


def _save(path: Path | None, results: Results) -> None:
    if path is not None:
        write(path, results)
