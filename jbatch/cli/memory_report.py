"""`jbatch plan`: what an engine would take of a GPU, from config.json alone. No weight is loaded."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jbatch.config import EngineConfig, ModelConfig
from jbatch.device.build import samplers_of, spec_for, step_bytes_of
from jbatch.device.memory import Memory, MemoryUse, divide_memory
from jbatch.device.model import abstract_params
from jbatch.device.platform import find_device, memory_of, prepare_jax
from jbatch.device.programs import programs_for
from jbatch.device.verdict import kept_verdict, proven_on
from jbatch.errors import ConfigError
from jbatch.model_dir.resolve import resolve_dtype, resolve_max_model_len, resolve_model
from jbatch.model_dir.tuned import check_tuned
from jbatch.sampler import with_unions
from jbatch.seam.bucket import buckets_of
from jbatch.sizes import describe_bytes

ESTIMATE = "temporaries, and state of penalties; estimated"


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """What an engine takes of the memory of each of its devices, and the programs that go with it."""

    model: str
    device: str
    num_devices: int
    num_params: int
    dtype: str
    memory: MemoryUse
    step_source: str  # where step_bytes comes from
    prefill_tokens: tuple[int, ...]  # of the steps with prompts
    decode_slots: tuple[int, ...]  # of the others
    num_programs: int

    def as_json(self) -> dict[str, Any]:
        """Every figure by its name, in bytes or tokens, or a count."""
        memory = self.memory
        derived = ("page_bytes", "cache_bytes", "cache_tokens", "longest_request", "full_length_seqs")
        figures = dataclasses.asdict(memory) | {name: getattr(memory, name) for name in derived}
        own = dataclasses.asdict(self)
        del own["memory"]
        return {"schema": 1} | own | figures

    def describe(self) -> str:
        """The figures as a table of a few lines."""
        memory = self.memory
        kv = describe_bytes(memory.kv_bytes_per_token)
        pages = f"{memory.num_pages} pages of {memory.page_size} tokens"
        rows = [
            ("weights", memory.weight_bytes, f"{_count(self.num_params)} parameters in {self.dtype}"),
            (
                "KV cache",
                memory.cache_bytes,
                f"{pages}: {memory.cache_tokens} tokens of {kv}",
            ),
            ("largest step", memory.step_bytes, self.step_source),
        ]
        each = "" if self.num_devices == 1 else f"{self.num_devices} devices, on each of them: "
        lines = [f"{self.model} on {each}{self.device}"]
        lines += [f"  {name:<13}{describe_bytes(size):>12}   {text}" for name, size, text in rows]
        if memory.limit_bytes is not None:
            free = memory.limit_bytes - memory.weight_bytes - memory.cache_bytes - memory.step_bytes
            lines.append(
                f"  {'left':<13}{describe_bytes(free):>12}   of {describe_bytes(memory.limit_bytes)}"
            )
        at_once = f"{memory.full_length_seqs} of that length run at once, {memory.max_num_seqs} if shorter"
        prefill, decode = (", ".join(map(str, sizes)) for sizes in (self.prefill_tokens, self.decode_slots))
        lines += [
            f"  requests      of up to {memory.longest_request} tokens; {at_once}",
            f"  programs      {self.num_programs}: steps of {decode} slots; with prompts, {prefill} tokens",
        ]
        if memory.longest_request < memory.max_model_len:
            what = f"the model's {memory.max_model_len} tokens do not fit into the cache"
            lines.append(f"  note          {what}: longer requests are refused")
        return "\n".join(lines)


def report_memory(model_dir: str | Path, config: EngineConfig, gpu_memory: int | None = None) -> MemoryReport:
    """The memory report of a model directory, of which only config.json is read.

    Args:
      gpu_memory: bytes of the GPU to report on; None: the device at hand.

    Raises:
      ConfigError: for a model or an option that jbatch refuses, and for what cannot fit, saying which option
        to change, and to what.
    """
    model = resolve_model(model_dir, config)
    check_tuned(config, model)
    max_model_len = resolve_max_model_len(config, model)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a report takes no device memory
    prepare_jax(config)
    verdict = kept_verdict(config, model, max_model_len)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if gpu_memory is not None else "default")
        device = find_device(config.device)
    where = "a GPU" if device.platform == "cpu" and gpu_memory is not None else device.device_kind
    memory = memory_of(device, config.tensor_parallel_size)
    if gpu_memory is not None:
        where, memory = f"{where} with {describe_bytes(gpu_memory)}", gpu_share(gpu_memory, config)

    def estimate(config: EngineConfig) -> int:
        spec = spec_for([device], config, model, max_model_len, proven=proven_on(device, verdict))
        return step_bytes_of(spec, buckets_of(config, max_model_len))

    if gpu_memory is None:
        model = resolve_dtype(config, model, device.platform)
    try:
        return make_report(model_dir, config, model, memory, estimate, where, ESTIMATE)
    except ConfigError as error:
        if memory.on_gpu or config.device == "cpu":
            raise
        reason = "there is no GPU here: give the memory of the one to plan for, --gpu-memory 80GiB"
        raise ConfigError("gpu_memory", None, f"{reason} (on the CPU, {error})") from None


def make_report(
    model_dir: str | Path,
    config: EngineConfig,
    model: ModelConfig,
    memory: Memory,
    step_bytes: Callable[[EngineConfig], int],
    device: str,
    step_source: str,
) -> MemoryReport:
    """The report on a memory that is yet to take the weights. Raises what `divide_memory` raises."""
    max_model_len = resolve_max_model_len(config, model)
    params = abstract_params(model).values()

    def weight_bytes(num_ranks: int) -> int:
        parts = abstract_params(model.split(num_ranks)).values()
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in parts)

    buckets = buckets_of(config, max_model_len)
    return MemoryReport(
        model=str(model_dir),
        device=device,
        num_devices=config.tensor_parallel_size,
        num_params=sum(math.prod(leaf.shape) for leaf in params),
        dtype=model.dtype,
        memory=divide_memory(config, model, max_model_len, memory, step_bytes, weight_bytes),
        step_source=step_source,
        prefill_tokens=tuple(bucket.tokens for bucket in buckets if bucket.tokens),
        decode_slots=tuple(bucket.slots for bucket in buckets if not bucket.tokens),
        num_programs=len(programs_for(buckets, with_unions(samplers_of(config)))),
    )


def gpu_share(gpu_memory: int, config: EngineConfig) -> Memory:
    """What JAX may take of a GPU."""
    return Memory(True, int(gpu_memory * config.gpu_memory_utilization))


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
