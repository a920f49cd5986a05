"""Paged decode attention in Triton, split over the context (Flash-Decoding, Dao et al. 2023).

A program takes one KV head of one slot and a share of its tokens; a second kernel joins the shares. Set
TRITON_INTERPRET=1 before this is imported to run it on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64  # tokens per iteration
MIN_GROUP = 16  # rows that tl.dot takes at least
PROGRAMS = 4 * 132  # enough for every multiprocessor of a large GPU; more would only be joined
MAX_SPLITS = 32


def paged_decode(
    q: Float[Tensor, "slots heads head_dim"],
    kv_pages: Float[Tensor, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Tensor, "slots pages_per_seq"],
    kv_lens: Int[Tensor, " slots"],
    num_splits: int | None = None,
) -> Float[Tensor, "slots heads head_dim"]:
    """One query per slot against the first `kv_lens` tokens of its sequence; zeros where that is 0.

    Args:
      num_splits: programs per slot and KV head, or None: enough to fill a GPU. It depends on shapes alone, so
        a slot's bits do not depend on its neighbours.
    """
    slots, num_heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv_pages.shape
    num_splits = num_splits or splits_for(slots * kv_heads, block_tables.shape[1] * page_size)
    group = num_heads // kv_heads
    partial = torch.empty((slots, num_heads, num_splits, head_dim), dtype=torch.float32, device=q.device)
    sums = torch.empty((2, slots, num_heads, num_splits), dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)
    padded_dim = triton.next_power_of_2(head_dim)
    _attend[(slots, kv_heads, num_splits)](
        q,
        kv_pages,
        block_tables,
        kv_lens,
        partial,
        sums,
        sums[1],
        head_dim**-0.5 * 1.4426950408889634,  # exp2 is cheaper than exp
        *q.stride()[:2],
        *kv_pages.stride()[:4],
        block_tables.stride(0),
        num_heads,
        group=group,
        padded_group=max(MIN_GROUP, triton.next_power_of_2(group)),
        head_dim=head_dim,
        padded_dim=padded_dim,
        page_size=page_size,
        num_splits=num_splits,
        block=BLOCK,
    )
    _join[(slots, num_heads)](
        partial,
        sums,
        sums[1],
        out,
        *out.stride()[:2],
        num_heads,
        head_dim=head_dim,
        padded_dim=padded_dim,
        num_splits=num_splits,
        padded_splits=triton.next_power_of_2(num_splits),
    )
    return out


def splits_for(num_programs: int, max_len: int) -> int:
    """Shares of a context: enough programs for the GPU, each with at least a few blocks."""
    wanted = -(-PROGRAMS // num_programs)
    return max(1, min(wanted, MAX_SPLITS, max_len // (4 * BLOCK)))


@triton.jit
def _attend(
    q_ptr,
    kv_ptr,
    tables_ptr,
    lens_ptr,
    partial_ptr,
    peaks_ptr,
    totals_ptr,
    scale,
    q_slot,
    q_head,
    kv_page,
    kv_kind,
    kv_head,
    kv_token,
    table_slot,
    num_heads,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    page_size: tl.constexpr,
    num_splits: tl.constexpr,
    block: tl.constexpr,
):
    """The unnormalised output, the maximum and the sum of weights of one share."""
    slot, head_idx, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_len = tl.load(lens_ptr + slot)
    share = tl.cdiv(tl.cdiv(kv_len, block), num_splits) * block
    begin = split * share
    end = tl.minimum(begin + share, kv_len)
    rows, dims, places = tl.arange(0, padded_group), tl.arange(0, padded_dim), tl.arange(0, block)
    heads = head_idx * group + rows
    in_group, in_dim = rows < group, dims < head_dim
    q = tl.load(
        q_ptr + slot * q_slot + heads[:, None] * q_head + dims[None, :],
        mask=in_group[:, None] & in_dim[None, :],
        other=0.0,
    )
    acc = tl.zeros((padded_group, padded_dim), tl.float32)
    peak = tl.full((padded_group,), -1e30, tl.float32)
    total = tl.zeros((padded_group,), tl.float32)
    for start in range(begin, end, block):
        tokens = start + places
        live = tokens < end
        pages = tl.load(tables_ptr + slot * table_slot + tokens // page_size, mask=live, other=0)
        base = pages.to(tl.int64) * kv_page + head_idx * kv_head + (tokens % page_size) * kv_token
        mask = live[:, None] & in_dim[None, :]  # never read what is not the sequence's: it may be NaN
        k = tl.load(kv_ptr + base[:, None] + dims[None, :], mask=mask, other=0.0)
        v = tl.load(kv_ptr + kv_kind + base[:, None] + dims[None, :], mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(live[None, :], scores, -1e30)
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.where(live[None, :], tl.exp2(scores - new_peak[:, None]), 0.0)
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(weights, axis=1)
        acc = acc * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        peak = new_peak
    place = (slot * num_heads + heads) * num_splits + split
    tl.store(peaks_ptr + place, peak, mask=in_group)
    tl.store(totals_ptr + place, total, mask=in_group)
    outs = partial_ptr + place[:, None] * head_dim + dims[None, :]
    tl.store(outs, acc, mask=in_group[:, None] & in_dim[None, :])


@triton.jit
def _join(
    partial_ptr,
    peaks_ptr,
    totals_ptr,
    out_ptr,
    out_slot,
    out_head,
    num_heads,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    num_splits: tl.constexpr,
    padded_splits: tl.constexpr,
):
    """The softmax over a head's shares; zeros for a slot without tokens."""
    slot, head = tl.program_id(0), tl.program_id(1)
    splits, dims = tl.arange(0, padded_splits), tl.arange(0, padded_dim)
    in_splits, in_dim = splits < num_splits, dims < head_dim
    place = (slot * num_heads + head) * num_splits + splits
    peaks = tl.load(peaks_ptr + place, mask=in_splits, other=-1e30)
    totals = tl.load(totals_ptr + place, mask=in_splits, other=0.0)
    partial = tl.load(
        partial_ptr + place[:, None] * head_dim + dims[None, :],
        mask=in_splits[:, None] & in_dim[None, :],
        other=0.0,
    )
    factors = tl.exp2(peaks - tl.max(peaks, axis=0))
    total = tl.sum(totals * factors, axis=0)
    out = tl.sum(partial * factors[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(
        out_ptr + slot * out_slot + head * out_head + dims, out.to(out_ptr.dtype.element_ty), mask=in_dim
    )
