"""The batching ladder with the shapes of LLaMA-7B: tokens per second, latency and use of the device.

One scenario, `mixed_length` at a quarter of its lengths: continuous batching beside two kinds of static
batches, in turns, until three rounds are done or time is over. A row for each arm, new after each of its
passes; all steps and requests are in batching-mixed_length.json, for `jbatch bench report`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.flags import Experiment
from bench.gpu_suite.task import TINY_OPTIONS, Row, Task, reason_of
from bench.ladder.arms import ARMS
from bench.ladder.batching import make_workloads
from bench.ladder.gains import LEAST_BATCHES, gains
from bench.ladder.ladder import Measurement, run_once
from bench.ladder.subject import LLMSubject
from bench.measure import manifest
from bench.measure.floor import floor_of
from bench.options import Setting
from bench.results import ArmResult, Results, describe, write
from bench.workloads.workload import Workload

SCENARIO, NAMES = "mixed_length", ("continuous", "static", "static-padded")
LENGTH_SCALE, TINY_SCALE = 0.25, 0.1
ROUNDS, SLOTS = 3, 32
OPTIONS: dict[str, Any] = {
    "max_num_seqs": SLOTS,
    "decode_buckets": (8, SLOTS),
    # One size of steps with prompts: where more wait, a full one comes after the other, none a small part.
    "max_num_batched_tokens": 128,
    "token_buckets": (128,),
    "num_pages": 1 + 4 * SLOTS,
    "max_model_len": 192,
    "samplers": ("greedy",),
    "show_progress": False,
}
FIGURES = ("output_throughput", "request_throughput", "device_busy_share", "floor_share")
COUNTS = ("slot_use", "kv_use", "num_steps")
LATENCIES = tuple(f"{part}_{name}_ms" for name in ("e2el", "ttft", "tpot") for part in ("mean", "p50", "p99"))


def run(task: Task) -> None:
    """Rows of the arms, in turns."""
    model, options = ("demo", TINY_OPTIONS) if task.tiny else ("llama2-7b", OPTIONS)
    options = options | {"attention_backend": task.backend()}
    setting = Setting(num_prompts=LEAST_BATCHES * options["max_num_seqs"])
    scale = {"length_scale": TINY_SCALE if task.tiny else LENGTH_SCALE}
    (workload,) = make_workloads(Experiment(model, [SCENARIO]), setting, options, scale)
    arms = [ARMS[name] for name in NAMES]
    subject = LLMSubject(
        model, workload.longest, options, measure_floor=False, modes=dict.fromkeys(arm.mode for arm in arms)
    )
    if rates := task.rates():
        subject.floor = floor_of(subject.llm.model_config, *rates)
    measurements = [Measurement(arm, subject.max_num_seqs) for arm in arms]
    longest_s = 0.0  # of a pass: none begins that would not end
    for _ in range(1 if task.tiny else ROUNDS):
        for measurement in measurements:
            if measurement.failed is None and longest_s < task.left_s:
                before = task.left_s
                _attempt(subject, measurement, workload, setting)
                longest_s = max(longest_s, before - task.left_s)
                task.emit({"case": f"{model} {SCENARIO} {measurement.arm.name}", **row(measurement)})
        save(task, subject, workload, setting, measurements)
    subject.close()


def _attempt(subject: LLMSubject, measurement: Measurement, workload: Workload, setting: Setting) -> None:
    try:
        ended = run_once(subject, measurement.arm, measurement.max_num_seqs, workload, setting)
        measurement.passes.append(ended)
    except Exception as error:  # of whatever kind: the others' figures matter more
        measurement.failed = reason_of(error)


def row(measurement: Measurement) -> Row:
    """An arm's figures, of the pass of median throughput."""
    result = measurement.result()
    about: Row = {
        "arm": measurement.arm.name,
        "slots": measurement.max_num_seqs,
        "repeats": list(result.repeats),
    }
    if measurement.failed is not None:
        return about | {"status": "failed", "reason": measurement.failed}
    every = result.to_json()
    return about | {"status": "ok", **{name: every[name] for name in (*FIGURES, *COUNTS, *LATENCIES)}}


def save(
    task: Task, subject: LLMSubject, workload: Workload, setting: Setting, measurements: list[Measurement]
) -> None:
    """Write all there is, with every step and request."""
    arms: dict[str, ArmResult] = {one.arm.name: one.result() for one in measurements}
    about = manifest.collect() | subject.about | {"setting": dataclasses.asdict(setting)}
    results = Results("batching", about, describe(workload), arms, gains=gains(arms, workload))
    write(task.out / f"batching-{SCENARIO}.json", results)
