"""Paged decode attention in Pallas Triton, for Ampere and Hopper.

A persistent grid walks a list of KV chunks (`DecodeWork`), one KV head at a time. A chunk leaves
partial sums, which a small second kernel combines in their order (Flash-Decoding, Dao et al. 2023), so a
sequence's bits depend on nothing but the sequence.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.problem import Problem
from pallas_kernels.softmax import LOG2E, NEG_INF
from pallas_kernels.triton import common as triton_common
from pallas_kernels.triton.common import MIN_DOT, Softmax, column_parts
from pallas_kernels.work_list import DecodeWork

COMBINE_UNROLL = 8  # partial sums in flight
F32 = jnp.float32


class Tiles(NamedTuple):
    """How the kernel cuts up its work."""

    chunk: int  # tokens of a work item
    block_kv: int  # tokens of a product
    num_warps: int
    num_stages: int
    num_ctas: int  # of the persistent grid


def default_tiles(problem: Problem, num_cores: int, interpreted: bool) -> Tiles:
    """Tiles that compile without spills for every shape.

    Three stages: page ids are read one block ahead of the keys, and those one ahead of the product. Up to 127
    registers and 39 KB leave room for four CTAs on a core.
    """
    del problem, interpreted
    return Tiles(512, 64, 4, 3, num_cores * 4)


def declines(problem: Problem) -> str | None:
    """Why this kernel does not take a problem, or None."""
    return triton_common.declines(problem)


def paged_decode(
    q: Float[Array, "slots heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    kv_lens: Int[Array, " slots"],
    work: DecodeWork,
    *,
    scale: float,
    tiles: Tiles,
    interpret: bool = False,
) -> Float[Array, "slots heads head_dim"]:
    """One query per slot against the first `kv_lens` tokens of its sequence; zeros where that is 0, NaN
    where the work list had no room for a slot.

    Raises:
      ValueError: if `tiles.chunk` is no multiple of `tiles.block_kv`.
    """
    if tiles.chunk % tiles.block_kv:
        raise ValueError(f"chunk={tiles.chunk}: must be a multiple of block_kv={tiles.block_kv}")
    partial = _partials(q, kv_pages, block_tables, kv_lens, work, scale, tiles, interpret)
    return _combine(*partial, work.first, kv_pages.shape[2], q.dtype, interpret)


def _partials(
    q: Float[Array, "slots heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    kv_lens: Int[Array, " slots"],
    work: DecodeWork,
    scale: float,
    tiles: Tiles,
    interpret: bool,
) -> tuple[
    Float[Array, "items heads head_dim"],
    Float[Array, "items heads"],
    Float[Array, "items heads"],
]:
    """Each chunk's unnormalised output, its largest score in units of log 2, and its sum of weights."""
    slots, num_heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv_pages.shape
    group, max_items = num_heads // kv_heads, work.slots.shape[0]
    chunk, block_kv = tiles.chunk, tiles.block_kv
    rows = max(MIN_DOT, pl.next_power_of_2(group))
    parts = column_parts(head_dim)

    def paged_decode_triton(
        q_ref, kv_ref, tables_ref, lens_ref, slots_ref, chunks_ref, first_ref, out_ref, peak_ref, total_ref
    ):
        program = pl.program_id(0)
        in_group = jnp.arange(rows) < group

        def visit_item(step, _):
            index = program + step * tiles.num_ctas  # the heads of an item lie side by side
            item, kv_head = lax.div(index, kv_heads), lax.rem(index, kv_heads)
            heads = pl.ds(kv_head * group, rows)
            slot = slots_ref[item]
            kv_len, begin = lens_ref[slot], chunks_ref[item] * chunk
            q_parts = [
                triton.load(q_ref.at[slot, heads, part], mask=in_group[:, None], other=0.0) for part in parts
            ]

            def visit_block(block, state):
                tokens = begin + block * block_kv + jnp.arange(block_kv)
                live = tokens < kv_len
                tokens = jnp.minimum(tokens, kv_len - 1)  # dead places may hold NaN, and 0 x NaN is NaN
                pages, offsets = tables_ref[slot, lax.div(tokens, page_size)], lax.rem(tokens, page_size)
                k = [kv_ref[pages, 0, kv_head, offsets, part] for part in parts]
                scores = triton_common.scores(q_parts, k) * (scale * LOG2E)
                v = [kv_ref[pages, 1, kv_head, offsets, part] for part in parts]
                return state.add(jnp.where(live[None], scores, NEG_INF), v)

            num_blocks = lax.div(jnp.minimum(kv_len - begin, chunk) + (block_kv - 1), block_kv)
            state = lax.fori_loop(0, num_blocks, visit_block, Softmax.empty(rows, parts))
            for part, out in zip(parts, state.out, strict=True):
                triton.store(out_ref.at[item, heads, part], out, mask=in_group[:, None])
            triton.store(peak_ref.at[item, heads], state.peak, mask=in_group)
            triton.store(total_ref.at[item, heads], state.total, mask=in_group)

        num_items = jnp.minimum(first_ref[slots], max_items) * kv_heads
        num_steps = lax.div(num_items - program + (tiles.num_ctas - 1), tiles.num_ctas)
        lax.fori_loop(0, num_steps, visit_item, None)

    return pl.pallas_call(
        paged_decode_triton,
        out_shape=(
            jax.ShapeDtypeStruct((max_items, num_heads, head_dim), F32),
            jax.ShapeDtypeStruct((max_items, num_heads), F32),
            jax.ShapeDtypeStruct((max_items, num_heads), F32),
        ),
        grid=(tiles.num_ctas,),
        compiler_params=triton.CompilerParams(num_warps=tiles.num_warps, num_stages=tiles.num_stages),
        interpret=interpret,
        name="paged_decode_triton",
    )(q, kv_pages, block_tables, kv_lens, work.slots, work.chunks, work.first)


def _combine(
    partial: Float[Array, "items heads head_dim"],
    peaks: Float[Array, "items heads"],
    totals: Float[Array, "items heads"],
    first: Int[Array, " slots_plus_1"],
    kv_heads: int,
    dtype: DTypeLike,
    interpret: bool,
) -> Float[Array, "slots heads head_dim"]:
    """The softmax over each slot's chunks, in their order; zeros for slots without any."""
    max_items, num_heads, head_dim = partial.shape
    slots, group = first.shape[0] - 1, num_heads // kv_heads
    rows = pl.next_power_of_2(group)
    parts = column_parts(head_dim)

    def paged_decode_combine_triton(partial_ref, peaks_ref, totals_ref, first_ref, out_ref):
        slot, kv_head = pl.program_id(0), pl.program_id(1)
        heads, in_group = pl.ds(kv_head * group, rows), jnp.arange(rows) < group
        begin, end = first_ref[slot], first_ref[slot + 1]
        last = jnp.minimum(end, max_items) - 1

        def visit_items(turn, state):
            items = [begin + turn * COMBINE_UNROLL + lane for lane in range(COMBINE_UNROLL)]
            places = [jnp.minimum(item, last) for item in items]
            outs = [
                [
                    triton.load(partial_ref.at[at, heads, part], mask=in_group[:, None], other=0.0)
                    for part in parts
                ]
                for at in places
            ]
            sums = [triton.load(totals_ref.at[at, heads], mask=in_group, other=0.0) for at in places]
            tops = [triton.load(peaks_ref.at[at, heads], mask=in_group, other=NEG_INF) for at in places]
            tops = [jnp.where(item <= last, top, NEG_INF) for item, top in zip(items, tops, strict=True)]
            new_peak = functools.reduce(jnp.maximum, tops, state.peak)
            decay = jnp.exp2(state.peak - new_peak)
            acc, total = [out * decay[:, None] for out in state.out], state.total * decay
            for out, top, weights in zip(outs, tops, sums, strict=True):
                factor = jnp.exp2(top - new_peak)
                acc = [a + o * factor[:, None] for a, o in zip(acc, out, strict=True)]
                total += weights * factor
            return Softmax(acc, new_peak, total)

        num_turns = lax.div(last - begin + COMBINE_UNROLL, COMBINE_UNROLL)
        state = lax.fori_loop(0, num_turns, visit_items, Softmax.empty(rows, parts))
        norm = 1 / jnp.where(state.total == 0, 1.0, state.total)
        dropped = (end > max_items) & (end > begin)  # the work list had no room: do not answer with a part
        norm = jnp.where(dropped, jnp.nan, norm)
        for part, out in zip(parts, state.out, strict=True):
            triton.store(
                out_ref.at[slot, heads, part], (out * norm[:, None]).astype(dtype), mask=in_group[:, None]
            )

    return pl.pallas_call(
        paged_decode_combine_triton,
        out_shape=jax.ShapeDtypeStruct((slots, num_heads, head_dim), dtype),
        grid=(slots, kv_heads),
        compiler_params=triton.CompilerParams(num_warps=_combine_warps(rows, head_dim), num_stages=1),
        interpret=interpret,
        name="paged_decode_combine_triton",
    )(partial, peaks, totals, first)


def _combine_warps(rows: int, head_dim: int) -> int:
    """As many as give each thread 16 bytes of a partial sum."""
    return min(8, max(1, rows * pl.next_power_of_2(head_dim) // (32 * 4)))
