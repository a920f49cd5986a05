"""The options of `jbatch bench`: frozen, validated, and each field a flag."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jbatch.cli.options import ENGINE as ENGINE_FLAGS
from jbatch.cli.options import Flags
from jbatch.config import check_range
from jbatch.errors import ConfigError

WORKLOAD_HELP = {
    "input_len": "Prompt tokens: random, prefix.",
    "output_len": "Output tokens: random, prefix.",
    "random_range_ratio": "Lengths are uniform in [len (1 - X), len (1 + X)]: random, prefix.",
    "prefix_len": "Shared prompt tokens: prefix.",
    "num_prefixes": "Different shared beginnings: prefix, few-shot.",
    "dataset_path": "trace: CSV of TIMESTAMP, ContextTokens, GeneratedTokens.",
    "length_scale": "Multiply all lengths. [default: 1; 0.25 for the scenarios on the demo model]",
    "time_scale": "Multiply all arrival times.",
    "request_rate": "Arrivals per second. [default: inf, all at once]",
    "burstiness": "Gamma's shape, of the times between arrivals; 1 is Poisson, less is burstier.",
    "burst_size": "bursty_traffic: requests that arrive at once. [default: 8 batches]",
    "closed": "All arrive at time 0, of a trace too.",
}
SETTING_HELP = {
    "num_prompts": "Requests.",
    "seed": "Of lengths, token ids and arrivals.",
    "repeats": "Passes of each arm, in turn.",
    "max_concurrency": "Requests in the engine; others are sent when one ends.",
    "temperature": "0 is greedy.",
    "load": "Rescale arrivals to X times continuous batching's capacity.",
    "sweep": "Measure batch sizes up to --max-num-seqs; then each arm at its own best.",
    "no_floor": "Do not measure the device's rates first.",
}
LATENCY_HELP = {
    "input_len": "Prompt tokens.",
    "output_len": "Output tokens.",
    "batch_size": "Prompts.",
    "num_iters_warmup": "Batches that are not counted.",
    "num_iters": "Batches that are.",
    "seed": "Of token ids.",
}
ENGINE_OPTIONS = (
    *("max_num_seqs", "max_model_len", "max_num_batched_tokens", "page_size", "num_pages", "dtype", "device"),
    *("kv_cache_memory_bytes", "gpu_memory_utilization", "attention_backend", "load_format"),
    *("enable_prefix_caching", "target_itl_ms", "tuned"),
)
ARM_NAMES = (
    *("unbatched", "static", "static-full", "static-padded", "static-sorted", "static-sorted-predicted"),
    *("continuous", "continuous-sorted", "continuous-predicted"),
)
COMPARED_NAMES = (  # of arms of `compare`, and of their groups
    *("jbatch", "torch-paged", "torch-paged-flash-attn", "torch-paged-flash-attn-3", "torch-paged-mosaic"),
    *("hf-generate", "hf-continuous", "replay-jbatch", "replay-torch", "replay"),
)
DATASET_NAMES = (
    *("uniform_short", "mixed_length", "bursty_traffic", "random", "nano", "sharegpt-like", "prefix"),
    *("few-shot", "trace"),
)
HARDWARE_NAMES = ("h200", "a100")
LIMITED = ("ttft", "tpot", "e2el")  # latencies that goodput may limit
MAX_COUNT = 2**24


@dataclasses.dataclass(frozen=True)
class WorkloadOptions:
    """What may be said of a workload beyond its name; lengths are in tokens.

    Raises:
      ConfigError: naming the field, its value and the limit.
    """

    input_len: int = 128  # random; of a prefix workload, behind the prefix
    output_len: int = 128  # random, prefix
    random_range_ratio: float = 0.0  # random, prefix: uniform in [len (1 - ratio), len (1 + ratio)]
    prefix_len: int = 64  # prefix
    num_prefixes: int = 4  # prefix
    dataset_path: str | Path | None = None  # trace: the file
    length_scale: float = 1.0  # all lengths are multiplied by it, and are 1 at least
    time_scale: float = 1.0  # all arrival times are multiplied by it
    request_rate: float = math.inf  # requests per second; inf: all at once, but for a trace and bursts
    burstiness: float = 1.0  # gamma's shape, of the times between arrivals; 1: Poisson, less: burstier
    burst_size: int = 128  # bursty_traffic: requests that arrive at once
    closed: bool = False  # all arrive at time 0, whatever the workload says

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len", "prefix_len", "num_prefixes", "burst_size"):
            check_range(name, getattr(self, name), 1, MAX_COUNT)
        for name in ("length_scale", "time_scale", "burstiness"):
            _check_above_0(name, getattr(self, name))
        if self.request_rate != math.inf:
            _check_above_0("request_rate", self.request_rate)
        if not 0 <= self.random_range_ratio < 1:
            raise ConfigError("random_range_ratio", self.random_range_ratio, "must be at least 0, below 1")


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a workload is run.

    Raises:
      ConfigError: naming the field, its value and the limit.
    """

    num_prompts: int = 256
    seed: int = 0
    repeats: int = 3
    max_concurrency: int | None = None
    temperature: float = 0.0
    load: float | None = None
    sweep: bool = False
    no_floor: bool = False
    goodput: Mapping[str, float] = dataclasses.field(default_factory=dict)  # limits in ms, by latency

    def __post_init__(self) -> None:
        check_range("num_prompts", self.num_prompts, 1, MAX_COUNT)
        check_range("seed", self.seed, 0, 2**32 - 1)
        check_range("repeats", self.repeats, 1, 1000)
        if self.max_concurrency is not None:
            check_range("max_concurrency", self.max_concurrency, 1, MAX_COUNT)
        if self.load is not None:
            _check_above_0("load", self.load)
        if not 0 <= self.temperature <= 100:
            raise ConfigError("temperature", self.temperature, "must be from 0 to 100")


@dataclasses.dataclass(frozen=True)
class LatencySetting:
    """How `jbatch bench latency` runs. Raises ConfigError, as Setting does."""

    input_len: int = 32
    output_len: int = 128
    batch_size: int = 8
    num_iters_warmup: int = 10
    num_iters: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len", "batch_size", "num_iters"):
            check_range(name, getattr(self, name), 1, MAX_COUNT)
        check_range("num_iters_warmup", self.num_iters_warmup, 0, MAX_COUNT)
        check_range("seed", self.seed, 0, 2**32 - 1)


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """Limits in ms, of texts such as "ttft:200 tpot:50". Raises ConfigError for anything else."""
    limits: dict[str, float] = {}
    for text in itertools.chain.from_iterable(re.split(r"[\s,]+", text.strip()) for text in texts):
        name, _, value = text.partition(":")
        if name not in LIMITED:
            raise ConfigError("goodput", text, f"must limit one of {', '.join(LIMITED)}, as ttft:200")
        try:
            limits[name] = float(value)
        except ValueError:
            raise ConfigError("goodput", text, "must name a number of milliseconds, as ttft:200") from None
        if not limits[name] > 0:
            raise ConfigError("goodput", text, "must be above 0 milliseconds")
    return limits


def _check_above_0(field: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise ConfigError(field, value, "must be a number above 0")


_ENGINE = ENGINE_FLAGS.only(*ENGINE_OPTIONS).with_helps(
    enable_prefix_caching="Compute first tokens that requests of one pass share once; each pass begins cold. "
    "It is off by default.",
    max_model_len="Tokens of prompt and output. [default: of the longest request]",
)
ENGINE = _ENGINE.with_helps(max_num_seqs="Sequences that run at once.")
LADDER_ENGINE = _ENGINE.with_helps(
    max_num_seqs="Sequences that run at once. [default: 16]",
    batch_wait_timeout_s=ENGINE_FLAGS.helps["batch_wait_timeout_s"],
)
_SIZES = (
    *("max_num_seqs", "max_model_len", "max_num_batched_tokens", "target_itl_ms", "page_size", "num_pages"),
)
SIMULATED_ENGINE = ENGINE_FLAGS.only(*_SIZES, "enable_prefix_caching").with_helps(
    max_num_seqs="Sequences that run at once."
)
POLICIES_ENGINE = ENGINE_FLAGS.only(*_SIZES, "max_preemption_probability").with_helps(
    max_num_seqs="Sequences that run at once. [default: 16]",
    num_pages="Pages of the KV cache. [default: half of what as many of the longest fill]",
)
WORKLOAD = Flags(WorkloadOptions, WORKLOAD_HELP, {"Workload": tuple(WORKLOAD_HELP)})
ARRIVAL_OPTIONS = ("request_rate", "burstiness", "burst_size", "time_scale")  # of no meaning where closed
CLOSED_WORKLOAD = WORKLOAD.only(*(name for name in WORKLOAD_HELP if name not in (*ARRIVAL_OPTIONS, "closed")))
SETTING = Flags(
    Setting, SETTING_HELP, {"Workload": ("num_prompts", "seed"), "Measurement": tuple(SETTING_HELP)}
)
SIMULATED_RUN = SETTING.only("num_prompts", "seed", "max_concurrency")
THROUGHPUT = SETTING.only("num_prompts", "seed", "max_concurrency", "temperature").with_helps(
    num_prompts=f"{SETTING_HELP['num_prompts']} [default: 1000]"
)
LATENCY = Flags(LatencySetting, LATENCY_HELP, {"Measurement": tuple(LATENCY_HELP)})
