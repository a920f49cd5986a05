"""Rotary position embedding: the frequencies of each scaling, and the rotation of each position."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jbatch.config import RopeConfig


def frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Angular frequency of each rotated pair, in radians per token: float32 [head_dim / 2]."""
    inv_freq = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        inv_freq = inv_freq / rope.factor
    elif rope.kind == "llama3":
        inv_freq = _llama3(inv_freq, rope)
    elif rope.kind == "yarn":
        inv_freq = _yarn(inv_freq, rope, head_dim)
    return inv_freq.astype(np.float32)


def _llama3(inv_freq: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Keep short wavelengths, stretch long ones by `factor`, blend between (Llama 3.1)."""
    turns = rope.original_max_len * inv_freq / (2 * math.pi)  # over the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return inv_freq * (blend + (1.0 - blend) / rope.factor)


def _yarn(inv_freq: np.ndarray, rope: RopeConfig, head_dim: int) -> np.ndarray:
    """NTK-by-parts interpolation (Peng et al. 2023, section 3.2)."""

    def dim_of(turns: float) -> float:  # the dimension that makes `turns` turns over the original context
        return head_dim * math.log(rope.original_max_len / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dim_of(rope.beta_fast), dim_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
    return inv_freq * (1.0 - ramp) + inv_freq / rope.factor * ramp


def cos_sin(
    positions: Int[Array, "*tokens"], rope: RopeConfig, head_dim: int
) -> tuple[Float[Array, "*tokens half"], Float[Array, "*tokens half"]]:
    """The rotation of each position, float32; yarn's attention factor is folded in."""
    angles = positions[..., None].astype(jnp.float32) * frequencies(rope, head_dim)
    scale = rope.attention_factor if rope.kind == "yarn" else 1.0
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale
