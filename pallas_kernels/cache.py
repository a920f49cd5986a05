"""Writing the KV cache in plain JAX: in place where the cache is donated."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.rotary import rotated


def write_kv(
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    k: Float[Array, "tokens kv_heads head_dim"],
    v: Float[Array, "tokens kv_heads head_dim"],
    page_ids: Int[Array, " tokens"],
    offsets: Int[Array, " tokens"],
) -> Float[Array, "num_pages 2 kv_heads page_size head_dim"]:
    """Put each token's key and value at (page, offset); tokens whose page id is `num_pages` are dropped.

    One scatter, in place where `kv_pages` is donated. No two live tokens may share a place.
    """
    new = jnp.stack([k, v], axis=1).astype(kv_pages.dtype)
    return kv_pages.at[page_ids, :, :, offsets].set(new, mode="drop", unique_indices=True)


def rotate_and_write(
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    qkv: Float[Array, "tokens kv_heads rows head_dim"],
    cos: Float[Array, "tokens half"],
    sin: Float[Array, "tokens half"],
    page_ids: Int[Array, " tokens"],
    offsets: Int[Array, " tokens"],
) -> tuple[Float[Array, "num_pages 2 kv_heads page_size head_dim"], Float[Array, "tokens heads head_dim"]]:
    """The cache with each token's rotated key and its value at (page, offset), and rotated queries."""
    q, k, v = rotated(qkv, cos, sin)
    return write_kv(kv_pages, k, v, page_ids, offsets), q


def copy_pages(
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    src: Int[Array, " n"],
    dst: Int[Array, " n"],
) -> Float[Array, "num_pages 2 kv_heads page_size head_dim"]:
    """Copy page `src[i]` to page `dst[i]`, for copy-on-write; pairs whose `dst` is `num_pages` are dropped.

    In place where `kv_pages` is donated. All pages are read before any is written, so chains and swaps do
    what they say; no page may be written twice.
    """
    return kv_pages.at[dst].set(kv_pages[src], mode="drop", unique_indices=True)
