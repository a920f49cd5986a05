"""Random weights: for benchmarks and tests, where values do not matter but shapes and speed do."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weights.errors import WeightsError
from weights.hugging_face import Form


def random(
    like: Mapping[str, jax.ShapeDtypeStruct],
    seed: int = 0,
    *,
    scale: float = 0.02,
    shardings: Mapping[str, Any] | None = None,
    forms: Mapping[str, Form] | None = None,
) -> dict[str, jax.Array]:
    """Parameters named by `like`, drawn on the device one by one: norms one, biases zero, all else
    normal with standard deviation `scale`. Values depend on the seed (32 bits) and the name alone. `forms` as
    in `load`."""
    if not 0 <= seed < 2**32:
        raise WeightsError(f"seed {seed} is not in [0, 2**32)")
    shardings, forms = shardings or {}, forms or {}
    params = {}
    for name, leaf in like.items():
        sharding = shardings.get(name, leaf.sharding)
        if name in forms:
            whole = np.asarray(_draw(name, leaf, seed, scale, None))
            params[name] = jax.block_until_ready(jax.device_put(forms[name](whole), sharding))
        else:
            params[name] = _draw(name, leaf, seed, scale, sharding)
    return params


def _draw(name: str, leaf: jax.ShapeDtypeStruct, seed: int, scale: float, sharding: Any) -> jax.Array:
    if name.endswith(".scale"):
        return jnp.ones(leaf.shape, leaf.dtype, device=sharding)
    if name.endswith("bias"):
        return jnp.zeros(leaf.shape, leaf.dtype, device=sharding)
    return _normal(leaf.shape, leaf.dtype, sharding)(seed, zlib.crc32(name.encode()), scale)


@functools.lru_cache(maxsize=64)
def _normal(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Any:
    """One program per shape, which a model repeats in every layer."""

    def draw(seed: jax.Array, tag: jax.Array, scale: jax.Array) -> jax.Array:
        whole = jax.random.wrap_key_data(jnp.stack([jnp.uint32(0), seed]), impl="threefry2x32")
        key = jax.random.fold_in(whole, tag)
        return jax.random.normal(key, shape, dtype) * jnp.asarray(scale, dtype)

    jitted = jax.jit(draw, out_shardings=sharding)
    return lambda seed, tag, scale: jitted(jnp.uint32(seed), jnp.uint32(tag), jnp.float32(scale))
