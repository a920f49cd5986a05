"""Attention over the paged cache in plain PyTorch: the path of CPUs, and what kernels are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Attend = Callable[[Tensor, Tensor], Tensor]  # q and kv_pages of a layer
Decode = Callable[
    [Tensor, Tensor], Attend
]  # block_tables and kv_lens of a step: what layers share is made once


def gather_decode(block_tables: Int[Tensor, "slots pages_per_seq"], kv_lens: Int[Tensor, " slots"]) -> Attend:
    """One query per slot against the first `kv_lens` tokens of its sequence; zeros where that is 0."""

    def attend(
        q: Float[Tensor, "slots heads head_dim"],
        kv_pages: Float[Tensor, "num_pages 2 kv_heads page_size head_dim"],
    ) -> Float[Tensor, "slots heads head_dim"]:
        slots, num_heads, head_dim = q.shape
        _, _, kv_heads, page_size, _ = kv_pages.shape
        tables = block_tables.long()
        if not q.is_cuda:  # a captured graph cannot know the lengths
            tables = tables[:, : max(1, -(-int(kv_lens.max()) // page_size))]
        pages = kv_pages[tables].float()  # [slots, pages, 2, kv_heads, page_size, head_dim]
        keys, values = pages.permute(2, 0, 3, 1, 4, 5).reshape(2, slots, kv_heads, -1, head_dim)
        live = torch.arange(keys.shape[2], device=q.device) < kv_lens[:, None]
        values = torch.where(live[:, None, :, None], values, 0)  # 0 x NaN of an earlier owner is NaN
        grouped = q.float().view(slots, kv_heads, num_heads // kv_heads, head_dim)
        scores = grouped @ keys.transpose(-1, -2) * head_dim**-0.5
        weights = scores.masked_fill(~live[:, None, None], -torch.inf).softmax(dim=-1)
        weights = torch.where((kv_lens > 0)[:, None, None, None], weights, 0)
        return (weights @ values).reshape(q.shape).to(q.dtype)

    return attend


class Chunk(NamedTuple):
    """A chunk's queries, as the host knows them."""

    owner: int  # which of the block tables is its
    begin: int  # among the queries
    q_len: int
    kv_len: int


def chunks_of(q_starts: Sequence[int], q_lens: Sequence[int], kv_lens: Sequence[int]) -> list[Chunk]:
    """The chunks of a step: what is left is padding."""
    sizes = zip(q_starts, q_lens, kv_lens, strict=True)
    return [Chunk(idx, *size) for idx, size in enumerate(sizes) if size[1]]


def prefill(
    q: Float[Tensor, "tokens heads head_dim"],
    kv: Float[Tensor, "tokens 2 kv_heads head_dim"],
    kv_pages: Float[Tensor, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Tensor, "chunks pages_per_seq"],
    chunks: Sequence[Chunk],
) -> Float[Tensor, "tokens heads head_dim"]:
    """Causal attention of packed queries, chunk by chunk; zeros in places of no chunk.

    A whole prompt needs none of the cache, and PyTorch has a fused kernel for it.
    """
    out = torch.zeros_like(q)
    for owner, begin, q_len, kv_len in chunks:
        rows = slice(begin, begin + q_len)
        keys, values, mask = kv[rows, 0], kv[rows, 1], None
        if kv_len > q_len:
            keys, values = _gather(kv_pages, block_tables[owner], kv_len)
            last_key = torch.arange(kv_len - q_len, kv_len, device=q.device)
            mask = torch.arange(kv_len, device=q.device) <= last_key[:, None]
        queries, keys, values = (x.transpose(0, 1)[None] for x in (q[rows], keys, values))
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        out[rows] = attended[0].transpose(0, 1)
    return out


def _gather(kv_pages: Tensor, table: Int[Tensor, " pages_per_seq"], kv_len: int) -> Tensor:
    """[2, kv_len, kv_heads, head_dim] of one sequence."""
    page_size, head_dim = kv_pages.shape[-2:]
    pages = kv_pages[table[: -(-kv_len // page_size)].long()]
    return pages.permute(1, 0, 3, 2, 4).reshape(2, -1, kv_pages.shape[2], head_dim)[:, :kv_len]
