"""What weights, steps and KV cache take of a memory, and how many pages fit: arithmetic, in bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jbatch.config import EngineConfig, ModelConfig
from jbatch.errors import ConfigError
from jbatch.seam.step_output import LOGPROBS_WIDTH
from jbatch.sizes import describe_bytes

CPU_CACHE_BYTES = 2**30  # of the KV cache on a CPU, at most, where nothing else is asked for
MARGIN = 0.02  # of a GPU's memory: what the runtime takes for itself
UNKNOWN_BYTES = 2**62


class Memory(NamedTuple):
    """The memory an engine has, in bytes."""

    on_gpu: bool
    limit: int | None  # for weights, temporaries and cache together; None: the device does not say
    in_use: int = 0  # weights
    step: int = 0  # temporaries of the largest step

    @property
    def room(self) -> int:
        """What is left for the KV cache."""
        return UNKNOWN_BYTES if self.limit is None else max(0, self.limit - self.in_use - self.step)


def choose_num_pages(config: EngineConfig, model: ModelConfig, max_model_len: int, memory: Memory) -> int:
    """Pages of the pool, the null page included: as asked for, or what the memory holds.

    Raises:
      ConfigError: where not even one page fits, or not what was asked for, saying how much memory there is.
    """
    page_bytes = model.kv_bytes_per_token * config.page_size
    if config.num_pages is not None:
        if config.num_pages * page_bytes > memory.room:
            reason = f"pages of {page_bytes} bytes: at most {memory.room // page_bytes} fit into the memory"
            raise ConfigError("num_pages", config.num_pages, reason)
        return config.num_pages
    field, available = _available(config, memory)
    useful = 1 + config.max_num_seqs * -(-max_model_len // config.page_size)
    num_pages = min(useful, available // page_bytes)
    if config.kv_cache_memory_bytes is not None and num_pages * page_bytes > memory.room:
        raise ConfigError(field, available, f"at most {memory.room} bytes are left for the KV cache")
    if num_pages < 2:
        reason = f"{max(0, available)} bytes are left for the KV cache, and a page takes {page_bytes}"
        raise ConfigError(field, getattr(config, field), f"{reason}: two are needed at least")
    return num_pages


def _available(config: EngineConfig, memory: Memory) -> tuple[str, int]:
    """Bytes for the KV cache, and the option that decides it."""
    if config.kv_cache_memory_bytes is not None:
        return "kv_cache_memory_bytes", config.kv_cache_memory_bytes
    if not memory.on_gpu:
        return "kv_cache_memory_bytes", min(CPU_CACHE_BYTES, memory.room)
    if memory.limit is None:
        reason = "this device does not say how much memory it has: set num_pages or kv_cache_memory_bytes"
        raise ConfigError("gpu_memory_utilization", config.gpu_memory_utilization, reason)
    return "gpu_memory_utilization", int(memory.room - MARGIN * memory.limit)


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """What an engine takes of the memory of each of its devices; sizes in bytes."""

    limit_bytes: int | None
    weight_bytes: int
    step_bytes: int  # temporaries of the largest step
    kv_bytes_per_token: int
    page_size: int  # tokens
    num_pages: int  # the null page included
    max_model_len: int
    max_num_seqs: int

    @property
    def page_bytes(self) -> int:
        return self.page_size * self.kv_bytes_per_token

    @property
    def cache_bytes(self) -> int:
        return self.num_pages * self.page_bytes

    @property
    def cache_tokens(self) -> int:
        """Tokens that the pool holds; the null page holds none."""
        return (self.num_pages - 1) * self.page_size

    @property
    def longest_request(self) -> int:
        """Tokens of prompt and output; a longer request is refused."""
        return min(self.max_model_len, self.cache_tokens)

    @property
    def full_length_seqs(self) -> int:
        """Sequences of `longest_request` tokens that run at once without preemption."""
        pages = -(-self.longest_request // self.page_size)
        return min(self.max_num_seqs, (self.num_pages - 1) // pages)


def divide_memory(
    config: EngineConfig,
    model: ModelConfig,
    max_model_len: int,
    memory: Memory,
    step_bytes: Callable[[EngineConfig], int],
    weight_bytes: Callable[[int], int],
) -> MemoryUse:
    """How an engine divides the memory of each of its devices, which is yet to take the weights.

    Args:
      step_bytes: temporaries of the largest step of an engine with other options: asked for `config` first,
        and for smaller steps where these do not fit.
      weight_bytes: of each device, for a number of devices.

    Raises:
      ConfigError: for what cannot fit, saying which option to change, and to what.
    """
    num_ranks = config.tensor_parallel_size
    part = model.split(num_ranks)
    memory = memory._replace(step=step_bytes(config), in_use=weight_bytes(num_ranks))
    try:
        num_pages = choose_num_pages(config, part, max_model_len, memory)
        use = MemoryUse(
            memory.limit,
            memory.in_use,
            memory.step,
            part.kv_bytes_per_token,
            config.page_size,
            num_pages,
            max_model_len,
            config.max_num_seqs,
        )
        if config.max_model_len is not None and use.cache_tokens < max_model_len:
            reason = f"the KV cache holds {use.cache_tokens} tokens, so no such request can be served"
            raise ConfigError("max_model_len", max_model_len, f"{reason}; {use.cache_tokens} would do")
    except ConfigError as error:
        changes = _changes(config, part, max_model_len, memory, step_bytes)
        more = _more_ranks(config, model, max_model_len, memory, step_bytes, weight_bytes)
        if more is not None:
            changes.append(f"tensor_parallel_size={more} would do")
        reason = "; or ".join([error.reason, *changes])
        raise ConfigError(error.field, error.value, reason) from None
    return use


def _changes(
    config: EngineConfig,
    model: ModelConfig,
    max_model_len: int,
    memory: Memory,
    step_bytes: Callable[[EngineConfig], int],
) -> list[str]:
    """The options that would do instead, each by itself."""
    page_bytes = model.kv_bytes_per_token * config.page_size
    cache = page_bytes * (config.num_pages or 1 + -(-max_model_len // config.page_size))
    changes = []
    if memory.limit is not None:
        need = memory.in_use + memory.step + cache
        room = memory.limit - memory.in_use - (MARGIN * memory.limit if memory.on_gpu else 0)
        # A CPU's temporaries are mostly weights that it converts: fewer tokens are no help.
        sizes = (("max_num_batched_tokens", 64), ("max_num_seqs", 1)) if memory.on_gpu else ()
        for name, least in sizes:
            if (size := _smaller(config, name, least, room - 2 * page_bytes, step_bytes)) is not None:
                changes.append(f"{name}={size} would do")
        if model.dtype == "float32" and need / 2 <= memory.limit:
            changes.append("dtype=bfloat16 would do")
        if memory.on_gpu:
            changes.append(f"{describe_bytes(gpu_bytes(need, config))} of GPU memory would do")
        else:
            changes.append(f"{describe_bytes(need)} of memory would do")
    return changes


def _more_ranks(
    config: EngineConfig,
    model: ModelConfig,
    max_model_len: int,
    memory: Memory,
    step_bytes: Callable[[EngineConfig], int],
    weight_bytes: Callable[[int], int],
) -> int | None:
    """The fewest GPUs, each with such a memory, that can do it; None where no number can."""
    if not memory.on_gpu:
        return None
    for num_ranks in model.possible_ranks:
        if num_ranks > config.tensor_parallel_size:
            split = dataclasses.replace(config, tensor_parallel_size=num_ranks)
            need = memory._replace(in_use=weight_bytes(num_ranks), step=step_bytes(split))
            with contextlib.suppress(ConfigError):
                pages = choose_num_pages(split, model.split(num_ranks), max_model_len, need)
                if config.max_model_len is None or (pages - 1) * config.page_size >= max_model_len:
                    return num_ranks
    return None


def _smaller(
    config: EngineConfig, name: str, least: int, room: float, step_bytes: Callable[[EngineConfig], int]
) -> int | None:
    """The largest of a step's sizes, halved until its temporaries fit; None where that is no help."""

    def fits(size: int) -> bool:
        changes: dict[str, Any] = {name: size, "decode_buckets": None, "token_buckets": None}
        smaller = dataclasses.replace(config, **changes)
        return step_bytes(smaller) <= room

    if room <= 0 or step_bytes(config) <= room or not fits(least):  # the first answer may take a compilation
        return None
    size = getattr(config, name) // 2
    while size > least and not fits(size):
        size //= 2
    return max(size, least)


def gpu_bytes(need: int, config: EngineConfig) -> int:
    """The GPU whose share holds `need` bytes and the runtime's margin, rounded up to whole MiB."""
    mib = need / (1 - MARGIN) / config.gpu_memory_utilization / 2**20
    return (math.floor(mib) + 1) * 2**20


class StepSize(NamedTuple):
    """What decides how much memory a step takes."""

    places: int  # of the packed token axis
    draws: int
    scores: bool  # whether it can report log-probabilities of prompts
    attention_bytes: int = 0  # what its attention kernels leave for one another


def estimate_step_bytes(model: ModelConfig, steps: Iterable[StepSize]) -> int:
    """Temporaries of the largest step on a GPU, in the variant that takes the most, without compiling it.

    At its widest, a layer keeps gate and up of each place, their product, its input in float32 and its
    output. Sampling with every option keeps four float32 arrays of logits, [draws, vocab], and where prompts
    are scored, the last hidden states and three times what is reported of them. Kernels of attention keep
    partial sums, beside queries, outputs and the residual stream.
    Within 3 % of what XLA compiles for an H200: Llama-3-8B and Llama-2-7B, steps of 64 and 256 slots, with
    2,048 and 512 tokens and without, jax 0.11.2.
    """
    itemsize = 4 if model.dtype == "float32" else 2
    layer_bytes = 3 * model.mlp_dim * itemsize + model.embed_dim * (itemsize + 4)
    score_bytes = model.embed_dim * itemsize + 3 * LOGPROBS_WIDTH * 4

    def step_bytes(step: StepSize) -> int:
        sampling = 4 * step.draws * model.vocab_size * 4 + step.scores * step.places * score_bytes
        attention = step.attention_bytes + step.places * 3 * model.num_heads * model.head_dim * itemsize
        return max(step.places * layer_bytes, sampling, attention)

    return max(map(step_bytes, steps))
