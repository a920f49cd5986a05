"""Writing the KV cache in Pallas Mosaic GPU, in place."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels import _compat

MAX_TOKENS = 8  # of a CTA
MAX_ELEMENTS = 8192  # of a CTA's keys: small enough for several CTAs on a core


def write_kv(
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    page_ids: Int[Array, " tokens"],
    offsets: Int[Array, " tokens"],
    *,
    interpret: Any = False,
) -> Float[Array, "num_pages 2 kv_heads page_size head_dim"]:
    """Put each token's key and value at (page, offset); tokens whose page id is `num_pages` are dropped.

    In place where `kv_pages` is donated. No two live tokens may share a place.
    """
    num_tokens, kv_heads, head_dim = k.shape
    num_pages, dtype = kv_pages.shape[0], kv_pages.dtype
    block = max(1, min(MAX_TOKENS, MAX_ELEMENTS // (kv_heads * head_dim), num_tokens))
    cache = jax.new_ref(kv_pages)  # a kernel may write to it, and no copy is made

    def kernel(cache_gmem, k_gmem, v_gmem, pages_gmem, offsets_gmem, new_smem, ready):
        first = lax.axis_index("block") * block
        for kind, new_gmem in enumerate((k_gmem, v_gmem)):  # behind the last token TMA reads zeros
            plgpu.copy_gmem_to_smem(new_gmem.at[pl.ds(first, block)], new_smem.at[kind], ready.at[0])
        tokens = [jnp.minimum(first + i, num_tokens - 1) for i in range(block)]
        places = [(pages_gmem[token], offsets_gmem[token]) for token in tokens]
        plgpu.barrier_wait(ready.at[0])

        def write(i, page, offset):
            for kind in range(2):
                plgpu.copy_smem_to_gmem(new_smem.at[kind, i], cache_gmem.at[page, kind, :, offset])

        for i, (page, offset) in enumerate(places):
            live = (first + i < num_tokens) & (page >= 0) & (page < num_pages)
            pl.when(live)(functools.partial(write, i, page, offset))
        plgpu.wait_smem_to_gmem(0)

    plgpu.kernel(
        kernel,
        scratch_types=(
            plgpu.SMEM((2, block, kv_heads, head_dim), dtype),
            plgpu.Barrier(num_arrivals=2, num_barriers=1),
        ),
        grid=(pl.cdiv(num_tokens, block),),
        grid_names=("block",),
        interpret=_compat.mosaic_interpret(interpret),
        kernel_name="write_kv",
    )(cache, k.astype(dtype), v.astype(dtype), page_ids, offsets)
    return jax.freeze(cache)
