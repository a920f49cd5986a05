"""The op a model calls: attention of ragged queries over a paged KV cache."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from pallas_kernels import reference
from pallas_kernels.problem import PAGE_SIZES

IMPLEMENTATIONS = {"xla": reference}


class RaggedMetadata(NamedTuple):
    """Where each slot's queries lie in the packed token axis, and how long its sequence is.

    Every slot starts at a multiple of `TOKEN_ALIGN` tokens; dead slots have `q_lens` 0.
    `work` is a kernel's list of work, planned once per step, or None.
    """

    q_starts: Int[Array, " slots"]
    q_lens: Int[Array, " slots"]
    kv_lens: Int[Array, " slots"]  # with this step's tokens
    work: Any = None


def paged_attention(
    q: Float[Array, "tokens heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    metadata: RaggedMetadata,
    *,
    scale: float,
    implementation: str | None = None,
) -> Float[Array, "tokens heads head_dim"]:
    """Causal attention of each slot's queries over its own pages.

    The queries are the last `q_lens[i]` of slot i's `kv_lens[i]` tokens, whose keys and values are
    already in the cache: a fresh prompt, a chunk of one, and a prompt behind a cached prefix are one
    case. `tokens == slots` says that this is a decode step: query i is slot i's only one.

    Args:
      implementation: "xla" (plain JAX), or None for the default of this device.

    Returns:
      The attention output, in q's dtype; zeros for decode slots with `kv_lens` 0.

    Raises:
      ValueError: for shapes that do not fit together, naming them.
    """
    _check(q, kv_pages, block_tables, metadata, implementation)
    ops = IMPLEMENTATIONS[implementation or "xla"]
    if q.shape[0] == block_tables.shape[0]:
        return ops.paged_decode(q, kv_pages, block_tables, metadata.kv_lens, scale=scale)
    return ops.paged_prefill(
        q, kv_pages, block_tables, metadata.q_starts, metadata.q_lens, metadata.kv_lens, scale=scale
    )


def _check(q, kv_pages, block_tables, metadata, implementation) -> None:
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation={implementation!r}: choose from {sorted(IMPLEMENTATIONS)}")
    if q.ndim != 3 or kv_pages.ndim != 5 or block_tables.ndim != 2:
        raise ValueError(
            "expected q [tokens, heads, head_dim], kv_pages [num_pages, 2, kv_heads, page_size, head_dim], "
            f"block_tables [slots, pages_per_seq]; got {q.shape}, {kv_pages.shape}, {block_tables.shape}"
        )
    _, two, kv_heads, page_size, head_dim = kv_pages.shape
    if two != 2:
        raise ValueError(f"kv_pages.shape[1]={two}: must be 2 (keys, values)")
    if page_size not in PAGE_SIZES:
        raise ValueError(f"page_size={page_size}: must be one of {PAGE_SIZES}")
    if head_dim != q.shape[2]:
        raise ValueError(f"head_dim={head_dim} of kv_pages differs from q's {q.shape[2]}")
    if q.shape[1] % kv_heads:
        raise ValueError(f"heads={q.shape[1]} of q is no multiple of kv_heads={kv_heads}")
    for name in ("q_starts", "q_lens", "kv_lens"):
        shape = getattr(metadata, name).shape
        if shape != block_tables.shape[:1]:
            raise ValueError(f"{name}.shape={shape}: must be [slots] = {block_tables.shape[:1]}")
