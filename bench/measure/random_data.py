"""Random arrays made on the device: zeros would run faster than any real data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

BLOCK_ELEMENTS = 2**25  # of a turn of the loop, which bounds the temporaries


@functools.partial(jax.jit, static_argnums=(0, 1))
def normal(shape: tuple[int, ...], dtype: str, seed: int) -> jax.Array:
    """An array of standard normal numbers."""
    return fill(shape, dtype, lambda key, block: jax.random.normal(key, block, dtype), seed)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def kv_pool(shape: tuple[int, ...], dtype: str, seed: int, value_scale: float) -> jax.Array:
    """A cache full of normal keys, and values of `value_scale` times that; the null page holds NaN."""

    def pages(key: jax.Array, block: tuple[int, ...]) -> jax.Array:
        scales = jnp.asarray([1, value_scale], dtype).reshape(1, 2, 1, 1, 1)
        return jax.random.normal(key, block, dtype) * scales

    return fill(shape, dtype, pages, seed).at[0].set(jnp.nan)


def fill(
    shape: tuple[int, ...],
    dtype: str,
    make: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    seed: int,
) -> jax.Array:
    """An array made in blocks of its first axis, in place."""
    rows = shape[0]
    block = min(rows, max(1, BLOCK_ELEMENTS // math.prod(shape[1:])))

    def fill_block(index: jax.Array, out: jax.Array) -> jax.Array:
        part = make(jax.random.fold_in(jax.random.key(seed, impl="rbg"), index), (block, *shape[1:]))
        start = jnp.minimum(index * block, rows - block)  # the last block overlaps the one before
        return lax.dynamic_update_slice_in_dim(out, part, start, axis=0)

    return lax.fori_loop(0, -(-rows // block), fill_block, jnp.zeros(shape, dtype))
