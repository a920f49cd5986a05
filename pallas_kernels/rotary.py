"""Rotary position embedding (Su et al. 2021) in plain JAX, of projections grouped by KV head."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def rotate(
    x: Float[Array, "*tokens heads head_dim"],
    cos: Float[Array, "*tokens half"],
    sin: Float[Array, "*tokens half"],
) -> Float[Array, "*tokens heads head_dim"]:
    """Rotate the pairs (i, i + head_dim / 2), as Hugging Face checkpoints store them; float32 inside."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def rotated(
    qkv: Float[Array, "*tokens kv_heads rows head_dim"],
    cos: Float[Array, "*tokens half"],
    sin: Float[Array, "*tokens half"],
) -> tuple[
    Float[Array, "*tokens heads head_dim"],
    Float[Array, "*tokens kv_heads head_dim"],
    Float[Array, "*tokens kv_heads head_dim"],
]:
    """Rotated queries and keys, and values, of rows that are for each KV head its queries, key and value."""
    *tokens, kv_heads, rows, head_dim = qkv.shape
    q = qkv[..., :-2, :].reshape(*tokens, kv_heads * (rows - 2), head_dim)
    return rotate(q, cos, sin), rotate(qkv[..., -2, :], cos, sin), qkv[..., -1, :]
