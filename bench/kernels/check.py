"""Whether a result is right: no time is worth anything before that."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bench.kernels import problems as attention_problems
from bench.kernels.arms import Setup, kernel_call, make_setup
from bench.kernels.problems import DTYPE, TINY, Case, decode_case
from bench.measure import random_data

# Of the norm of a query's result over all heads, at the worst query. Weights and results are rounded to
# bfloat16 by both sides, a relative error of 0.2 % each time; a page too many or too few costs more.
TOLERANCE = 0.01


def is_right(error: float) -> bool:
    """Whether a relative error is that of rounding; NaN is not."""
    return error <= TOLERANCE  # NaN is not


@jax.jit
def relative_error(out: jax.Array, expected: jax.Array) -> jax.Array:
    """The largest relative error of a row of [tokens, heads, head_dim], in float32."""
    out, expected = out.astype(jnp.float32), expected.astype(jnp.float32)
    errors = jnp.linalg.norm(out - expected, axis=(1, 2))
    return jnp.max(errors / jnp.linalg.norm(expected, axis=(1, 2)))


def reference_error() -> float:
    """The relative error of plain JAX, which all others are compared with, against float64 NumPy: the larger
    of that of a decode and of a prefill step, on small cases on this device."""
    cases = [
        decode_case(TINY, 16, 5, 200, "ragged"),
        Case("prefill", TINY, 16, "packed", (72, 16, 8), (72, 16, 140)),
    ]
    return max(_reference_error(case) for case in cases)


def _reference_error(case: Case) -> float:
    """The relative error of plain JAX on one case."""
    num_pages = attention_problems.pool_pages(case, 1)
    shape = (num_pages, *attention_problems.page_shape(case))
    pool = random_data.kv_pool(shape, DTYPE, 5, 1.0)
    setup = make_setup(case, pool, num_caches=1, num_calls=1, interpret=False)
    call = kernel_call("xla", setup)
    out = call.function(setup.q, setup.kv_pages, jnp.asarray(setup.tables[0]), setup.lens, call.work)
    return float(relative_error(out, jnp.asarray(attend(setup))))


def attend(setup: Setup) -> np.ndarray:
    """The answer in float64 NumPy, dense, one query at a time."""
    q, pool = np.asarray(setup.q, np.float64), np.asarray(setup.kv_pages, np.float64)
    result, row = np.zeros_like(q), 0
    for table, q_len, kv_len in zip(setup.tables[0], setup.case.q_lens, setup.case.kv_lens, strict=True):
        pages = pool[table[: -(-kv_len // setup.case.page_size)]]  # [pages, 2, kv_heads, page_size, head_dim]
        k, v = np.moveaxis(pages, 1, 0).swapaxes(2, 3).reshape(2, -1, *pages.shape[2::2])
        for position in range(kv_len - q_len, kv_len):
            result[row] = _attend_one(q[row], k[: position + 1], v[: position + 1], setup.scale)
            row += 1
    return result


def _attend_one(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """A query [heads, head_dim] over keys and values [tokens, kv_heads, head_dim]."""
    scores = np.einsum("kgd,nkd->kgn", q.reshape(k.shape[1], -1, q.shape[-1]), k) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("kgn,nkd->kgd", weights, v).reshape(q.shape)
