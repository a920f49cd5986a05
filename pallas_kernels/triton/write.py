"""Writing the KV cache in Pallas Triton, in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from pallas_kernels.triton.common import column_parts


def write_kv(
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    page_ids: Int[Array, " tokens"],
    offsets: Int[Array, " tokens"],
    *,
    interpret: bool = False,
) -> Float[Array, "num_pages 2 kv_heads page_size head_dim"]:
    """Put each token's key and value at (page, offset); tokens whose page id is `num_pages` are dropped.

    In place where `kv_pages` is donated. No two live tokens may share a place.
    """
    num_pages, _, kv_heads, _, head_dim = kv_pages.shape
    heads = pl.Slice(0, pl.next_power_of_2(kv_heads))

    def write_kv_triton(_, k_ref, v_ref, pages_ref, offsets_ref, out_ref):
        token = pl.program_id(0)
        page, offset = pages_ref[token], offsets_ref[token]
        exists = (jnp.arange(heads.size) < kv_heads)[:, None]

        @pl.when((page >= 0) & (page < num_pages))
        def _write():
            for kind, new_ref in enumerate((k_ref, v_ref)):
                for part in column_parts(head_dim):
                    new = triton.load(new_ref.at[token, heads, part], mask=exists, other=0.0)
                    place = out_ref.at[page, jnp.int32(kind), heads, offset, part]
                    triton.store(place, new.astype(kv_pages.dtype), mask=exists)

    return pl.pallas_call(
        write_kv_triton,
        out_shape=jax.ShapeDtypeStruct(kv_pages.shape, kv_pages.dtype),
        grid=k.shape[:1],
        input_output_aliases={0: 0},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="write_kv_triton",
    )(kv_pages, k, v, page_ids, offsets)
