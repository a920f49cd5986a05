"""Parameters from arrays in memory, by their names or Hugging Face's: checked first, then made one by one."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from weights import names
from weights.errors import raise_if_any
from weights.hugging_face import Form, other_names
from weights.safetensors_file import aligned_empty

_FLOATS = tuple(map(np.dtype, (ml_dtypes.bfloat16, np.float16, np.float32, np.float64)))
_EMBEDDING, _UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"


class Source(NamedTuple):
    """What a parameter is made of: arrays, joined along an axis."""

    arrays: tuple[np.ndarray | jax.Array, ...]
    axis: int = 0


def match(arrays: Mapping[str, Any], like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Source]:
    """What each parameter of `like` is made of. No array is read, but a tied lm_head.

    All must be there, and nothing else but what models of Hugging Face carry along: constants of the rotary
    embedding, and an lm_head.weight that is the embedding, where the two are tied.

    Args:
      arrays: name -> array of NumPy or JAX, of a floating-point dtype. The names are those of `like`, or
        Hugging Face's.

    Raises:
      WeightsError: naming each tensor that is missing, unexpected, or not what it must be.
    """
    if any(name in like for name in arrays):
        table = {name: [names.Part(name, leaf.shape, (slice(None),))] for name, leaf in like.items()}
        strangers: list[str] = []
    else:
        table = {name: names.parts(name, leaf.shape) for name, leaf in like.items()}
        strangers = other_names(arrays, table)
    raise_if_any("these weights", strangers or list(_problems(arrays, table)))
    return {
        name: Source(tuple(arrays[part.name] for part in parts), len(parts[0].where) - 1)
        for name, parts in table.items()
    }


def _problems(arrays: Mapping[str, Any], table: Mapping[str, list[names.Part]]) -> Iterable[str]:
    wanted = {part.name: part.shape for parts in table.values() for part in parts}
    for name, shape in wanted.items():
        if name not in arrays:
            yield f"tensor {name} is missing: all are needed"
        elif (problem := _problem(arrays[name], shape)) is not None:
            yield f"tensor {name} {problem}"
    for name in sorted(map(str, arrays.keys() - wanted.keys())):
        if name == _UNEMBEDDING and _EMBEDDING in wanted:
            if not _same(arrays[name], arrays.get(_EMBEDDING)):
                yield f"the config ties {name} to {_EMBEDDING}, but the two differ"
        elif not names.IGNORED.fullmatch(name):
            yield f"tensor {name[:80]!r} is unexpected"


def _problem(array: Any, shape: tuple[int, ...]) -> str | None:
    """Why an array cannot be a tensor of this shape, or None."""
    if isinstance(array, jax.core.Tracer):
        return "is being traced: it has no values inside of jax.jit"
    if not isinstance(array, (np.ndarray, jax.Array)):
        return f"is a {type(array).__module__}.{type(array).__name__}: must be an array of NumPy or JAX"
    if tuple(array.shape) != shape:
        return f"has shape {list(array.shape)}: must be {list(shape)}"
    if array.dtype not in _FLOATS:
        return f"has dtype {array.dtype}: must be bfloat16, float16, float32 or float64"
    if isinstance(array, jax.Array) and array.is_deleted():
        return "was deleted, or donated to a function"
    return None


def _same(array: Any, embedding: Any) -> bool:
    return array is embedding or (
        np.shape(array) == np.shape(embedding) and np.array_equal(np.asarray(array), np.asarray(embedding))
    )


def make(
    source: Source,
    leaf: jax.ShapeDtypeStruct,
    sharding: jax.sharding.Sharding,
    form: Form | None = None,
) -> jax.Array:
    """A parameter in memory of its own, whatever becomes of the arrays: their owner may change or donate
    them. Waits until it is there.

    It is rounded to the dtype of `leaf` as on loading, and no more memory is taken on the device. Functions
    that join and round arrays there are compiled once for each shape and dtype; all else compiles nothing.

    Args:
      form: see `load`: from the parameter on the host, so it goes by there.
    """
    arrays, axis = source
    there = sharding.device_set
    if form or not all(isinstance(array, jax.Array) and array.devices() == there for array in arrays):
        host = aligned_empty(leaf.shape, np.dtype(leaf.dtype))
        shapes = _shapes(source, leaf)
        with np.errstate(over="ignore"):  # as a device has it: infinite
            np.concatenate(
                [np.asarray(array).reshape(shape) for array, shape in zip(arrays, shapes, strict=True)],
                axis,
                out=host,
                casting="unsafe",
            )
        made = jax.device_put(host if form is None else form(host), sharding)
    elif len(arrays) == 1 and arrays[0].shape == leaf.shape and arrays[0].dtype == leaf.dtype:
        made = jax.device_put(arrays[0], sharding, may_alias=False)
    else:
        joined = _join(arrays, _shapes(source, leaf), axis, np.dtype(leaf.dtype))
        made = jax.device_put(joined, sharding)
    return jax.block_until_ready(made)


def _shapes(source: Source, leaf: jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], ...]:
    """Of each array, as the part of the parameter that it is."""
    before, after = leaf.shape[: source.axis], leaf.shape[source.axis + 1 :]
    per_entry = int(np.prod(before + after))
    return tuple((*before, array.size // per_entry, *after) for array in source.arrays)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _join(
    arrays: tuple[jax.Array, ...], shapes: tuple[tuple[int, ...], ...], axis: int, dtype: np.dtype
) -> jax.Array:
    parts = [array.reshape(shape).astype(dtype) for array, shape in zip(arrays, shapes, strict=True)]
    return jnp.concatenate(parts, axis)
