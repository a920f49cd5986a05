"""The least time that a step can take on a device: what it must read, and what it must multiply.

A serial roofline: the matrix products take the larger of reading the weights and multiplying them, attention
of a decode step the reading of the cache, attention of a prefill step its products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jbatch.config import ModelConfig
from jbatch.model import abstract_params


class Rates(NamedTuple):
    """What the device was measured to do at most (bench.ceilings)."""

    read_bytes_per_s: float
    gemm_flop_per_s: float


class Matrices(NamedTuple):
    """Parameters that a step multiplies with; an embedding table that is only looked up is none of them."""

    body: int  # by every token
    head: int  # the unembedding: by every token that samples


def matrices(config: ModelConfig) -> Matrices:
    sizes = {name: math.prod(leaf.shape) for name, leaf in abstract_params(config).items()}
    head = sizes["embedding"]  # the unembedding has the same size, or is the same
    return Matrices(sum(size for name, size in sizes.items() if name.startswith("layers.")), head)


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of parameters that a step reads."""
    return sum(matrices(config)) * (4 if config.dtype == "float32" else 2)


def decode_floor(config: ModelConfig, slots: int, kv_tokens: int, rates: Rates) -> float:
    """Seconds of a decode step over `kv_tokens` tokens of cache in all."""
    products = 2 * sum(matrices(config)) * slots / rates.gemm_flop_per_s
    cache = kv_tokens * config.kv_bytes_per_token / rates.read_bytes_per_s
    return max(weight_bytes(config) / rates.read_bytes_per_s, products) + cache


def prefill_flop(config: ModelConfig, prompt_lens: Sequence[int]) -> int:
    """Operations of a step that prefills whole prompts: causal attention counts half of its square."""
    body, head = matrices(config)
    attention = 2 * config.num_layers * config.num_heads * config.head_dim
    return sum(2 * body * length + 2 * head + attention * length**2 for length in prompt_lens)


def prefill_floor(config: ModelConfig, prompt_lens: Sequence[int], rates: Rates) -> float:
    """Seconds of a step that prefills whole prompts."""
    products = prefill_flop(config, prompt_lens) / rates.gemm_flop_per_s
    return max(weight_bytes(config) / rates.read_bytes_per_s, products)
