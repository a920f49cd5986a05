"""What the Pallas Triton kernels share."""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from pallas_kernels.problem import Problem
from pallas_kernels.softmax import NEG_INF

MIN_DOT = 16  # the smallest side of a product
MAX_HEAD_DIM = 128
MAX_GROUP = 64


def declines(problem: Problem) -> str | None:
    """Why the attention kernels do not take a problem, or None."""
    if problem.dtype not in ("bfloat16", "float16"):
        return f"dtype {problem.dtype}: bfloat16 or float16 only"
    if problem.head_dim % MIN_DOT or problem.head_dim > MAX_HEAD_DIM:
        return f"head_dim {problem.head_dim}: multiples of {MIN_DOT} up to {MAX_HEAD_DIM} only"
    if problem.group > MAX_GROUP:
        return f"group {problem.group}: at most {MAX_GROUP}"
    return None


def column_parts(head_dim: int) -> list[pl.Slice]:
    """Cut head_dim into powers of two, largest first: a Triton tensor has no other size. 80 is 64 + 16."""
    parts, start = [], 0
    while start < head_dim:
        size = 1 << ((head_dim - start).bit_length() - 1)
        parts.append(pl.Slice(start, size))
        start += size
    return parts


def scores(q: list[Float[Array, "rows _"]], k: list[Float[Array, "keys _"]]) -> Float[Array, "rows keys"]:
    """The product of queries and keys, both by parts of head_dim."""
    products = (triton.dot(q_part, k_part.T) for q_part, k_part in zip(q, k, strict=True))
    return functools.reduce(operator.add, products)


class Softmax(NamedTuple):
    """A softmax-weighted sum under way (Milakov & Gimelshein 2018); scores are in units of log 2."""

    out: list[Float[Array, "rows _"]]  # unnormalised, by parts of head_dim
    peak: Float[Array, " rows"]
    total: Float[Array, " rows"]

    @classmethod
    def empty(cls, rows: int, parts: list[pl.Slice]) -> Softmax:
        out = [jnp.zeros((rows, part.size), jnp.float32) for part in parts]
        return cls(out, jnp.full(rows, NEG_INF, jnp.float32), jnp.zeros(rows, jnp.float32))

    def add(self, scores: Float[Array, "rows keys"], v: list[Float[Array, "keys _"]]) -> Softmax:
        """With one more block of keys."""
        peak = jnp.maximum(self.peak, scores.max(axis=1))
        decay = jnp.exp2(self.peak - peak)
        weights = jnp.exp2(scores - peak[:, None])
        total = self.total * decay + weights.sum(axis=1)
        weights = weights.astype(v[0].dtype)
        out = [
            out_part * decay[:, None] + triton.dot(weights, v_part)
            for out_part, v_part in zip(self.out, v, strict=True)
        ]
        return Softmax(out, peak, total)
