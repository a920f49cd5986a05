"""Rotating queries and keys, and writing the KV cache, in one Pallas Triton kernel, in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from pallas_kernels.problem import Problem
from pallas_kernels.triton.common import column_parts


def declines(problem: Problem) -> str | None:
    """Why the kernel does not take a problem, or None."""
    if problem.dtype not in ("bfloat16", "float16"):
        return f"dtype {problem.dtype}: bfloat16 or float16 only"
    if problem.head_dim % 2:
        return f"head_dim {problem.head_dim}: even ones only"
    return None


def rotate_and_write(
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    qkv: Float[Array, "tokens kv_heads rows head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    page_ids: Int[Array, " tokens"],
    offsets: Int[Array, " tokens"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "num_pages 2 kv_heads page_size head_dim"], Float[Array, "tokens heads head_dim"]]:
    """The cache with each token's rotated key and its value at (page, offset), and rotated queries.

    Tokens whose page id is `num_pages` are not written. In place where `kv_pages` is donated. No two live
    tokens may share a place. A program of the grid is a token and a KV head.
    """
    tokens, kv_heads, rows, head_dim = qkv.shape
    num_pages, group, half = kv_pages.shape[0], rows - 2, head_dim // 2
    parts = [(part, pl.Slice(half + part.start, part.size)) for part in column_parts(half)]

    def rotate_and_write_triton(_, qkv_ref, cos_ref, sin_ref, pages_ref, offsets_ref, out_ref, q_ref):
        token, head = pl.program_id(0), pl.program_id(1)
        page, offset = pages_ref[token], offsets_ref[token]
        live = (page >= 0) & (page < num_pages)

        def turned(row, low, high):  # the two parts of a row that belong together
            first, second = (
                triton.load(qkv_ref.at[token, head, jnp.int32(row), part]).astype(jnp.float32)
                for part in (low, high)
            )
            cos, sin = triton.load(cos_ref.at[token, low]), triton.load(sin_ref.at[token, low])
            return first * cos - second * sin, second * cos + first * sin

        for low, high in parts:
            for row in range(group):
                for part, new in zip((low, high), turned(row, low, high), strict=True):
                    triton.store(q_ref.at[token, head * group + row, part], new.astype(q_ref.dtype))

            @pl.when(live)
            def _write(low=low, high=high):
                key = turned(group, low, high)
                for part, new in zip((low, high), key, strict=True):
                    value = triton.load(qkv_ref.at[token, head, jnp.int32(group + 1), part])
                    for kind, row in enumerate((new, value)):
                        place = out_ref.at[page, jnp.int32(kind), head, offset, part]
                        triton.store(place, row.astype(out_ref.dtype))

    return pl.pallas_call(
        rotate_and_write_triton,
        out_shape=(
            jax.ShapeDtypeStruct(kv_pages.shape, kv_pages.dtype),
            jax.ShapeDtypeStruct((tokens, kv_heads * group, head_dim), qkv.dtype),
        ),
        grid=(tokens, kv_heads),
        input_output_aliases={0: 0},
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="rotate_and_write_triton",
    )(kv_pages, qkv, cos, sin, page_ids, offsets)
