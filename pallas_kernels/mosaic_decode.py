"""Paged decode attention for Hopper in Pallas Mosaic GPU.

A decode step is bounded by reading the cache once, so the kernel is a stream of page copies with a little
arithmetic behind it. A persistent grid walks a list of KV chunks (`plan.DecodeWork`); one warpgroup copies
pages into a ring in shared memory and runs ahead across chunks, the other computes an online softmax
(Milakov & Gimelshein 2018). Chunks leave partial sums, which a small second kernel combines in their order
(Flash-Decoding, Dao et al. 2023), so a sequence's bits depend on nothing but the sequence.

Products are swapped, S^T = K Q^T and O^T += V^T P^T: wgmma's 64 rows are then tokens or head_dim, and its
N is a *pack* of consecutive query heads: 8, or the group where that is larger. A pack of a smaller group
spans several KV heads; their blocks follow one another, each with the other heads' columns masked.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels import _compat
from pallas_kernels.mosaic_common import LOG2E, NEG_INF, swizzled_smem
from pallas_kernels.plan import DecodeWork
from pallas_kernels.problem import Problem
from pallas_kernels.tuning import MosaicDecode

COMPUTE, LOAD = 0, 1  # warpgroups
MIN_PACK = 8  # wgmma's N is a multiple of 8
COMBINE_ROWS = 64  # of head_dim per CTA of the second kernel: wgmma's row tile, so that the layouts agree
COMBINE_UNROLL = 8  # partial sums in flight
WGMMA = plgpu.Layout.WGMMA
F32 = jnp.float32


def declines(problem: Problem) -> str | None:
    """Why this kernel does not take a problem, or None."""
    if not _compat.HAS_MOSAIC:
        return f"jax {jax.__version__}: Mosaic GPU needs jax >= 0.11"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"dtype {problem.dtype}: bfloat16 or float16 only"
    if problem.head_dim % 64:
        return f"head_dim {problem.head_dim}: multiples of 64 only"
    if problem.group > 64:
        return f"group {problem.group}: at most 64"
    return None


class _Pack(NamedTuple):
    """How query heads are laid out in wgmma's columns."""

    group: int  # columns of a KV head, padding included
    columns: int
    kv_heads: int  # of a pack
    num_packs: int

    @classmethod
    def of(cls, group: int, kv_heads: int) -> _Pack:
        padded = next(n for n in _paddings(group) if kv_heads * n % MIN_PACK == 0)
        columns = max(MIN_PACK, padded)
        return cls(padded, columns, columns // padded, kv_heads * padded // columns)


def _paddings(group: int) -> list[int]:
    """Sizes that divide a pack or fill whole ones."""
    return [n for n in (1, 2, 4) if n >= group] + [max(1, -(-group // MIN_PACK)) * MIN_PACK]


def paged_decode(
    q: Float[Array, "slots heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    kv_lens: Int[Array, " slots"],
    work: DecodeWork,
    *,
    scale: float,
    tiles: MosaicDecode,
    interpret: Any = False,
) -> Float[Array, "slots heads head_dim"]:
    """One query per slot against the first `kv_lens` tokens of its sequence; zeros where that is 0, NaN
    where the work list had no room for a slot."""
    slots, num_heads, head_dim = q.shape
    kv_heads = kv_pages.shape[2]
    group = num_heads // kv_heads
    pack = _Pack.of(group, kv_heads)
    if pack.group != group:  # 3, 5, 6, 7 heads; XLA fuses the padding into what makes q
        q = jnp.pad(
            q.reshape(slots, kv_heads, group, head_dim), ((0, 0), (0, 0), (0, pack.group - group), (0, 0))
        )
        q = q.reshape(slots, kv_heads * pack.group, head_dim)
    partial = _partials(q, kv_pages, block_tables, kv_lens, work, pack, scale, tiles, interpret)
    out = _combine(*partial, work.first, slots, q.dtype, interpret)
    if pack.group != group:
        out = out.reshape(slots, kv_heads, pack.group, head_dim)[:, :, :group]
    return out.reshape(slots, num_heads, head_dim)


def _partials(
    q: Float[Array, "slots heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    kv_lens: Int[Array, " slots"],
    work: DecodeWork,
    pack: _Pack,
    scale: float,
    tiles: MosaicDecode,
    interpret: Any,
) -> tuple[
    Float[Array, "packs items head_dim columns"],
    Float[Array, "packs items columns"],
    Float[Array, "packs items columns"],
]:
    """Each chunk's unnormalised output, its largest score in units of log 2, and its sum of weights."""
    head_dim, page_size, max_items = q.shape[2], kv_pages.shape[3], work.slots.shape[0]
    chunk, block_kv, num_stages, num_ctas = tiles
    copy_rows = min(page_size, block_kv)
    num_copies = block_kv // copy_rows

    def kernel(
        q_gmem, kv_gmem, tables_gmem, lens_gmem, slots_gmem, chunks_gmem, first_gmem,  # inputs
        out_gmem, peak_gmem, total_gmem,  # outputs
        q_smem, k_smem, v_smem, p_smem, q_ready, q_free, k_ready, k_free, v_ready, v_free,
    ):  # fmt: skip
        cta = lax.axis_index("cta")
        num_items = jnp.minimum(first_gmem[first_gmem.shape[0] - 1], max_items) * pack.num_packs
        num_steps = lax.div(num_items - cta + (num_ctas - 1), jnp.int32(num_ctas))

        def item_at(step):
            """Index in the work list, pack, slot, its length, first token, number of blocks of all heads."""
            item = cta + step * num_ctas
            index = lax.div(item, jnp.int32(pack.num_packs))
            slot = slots_gmem[index]
            kv_len = lens_gmem[slot]
            begin = chunks_gmem[index] * chunk
            num_blocks = lax.div(jnp.minimum(kv_len - begin, chunk) + (block_kv - 1), jnp.int32(block_kv))
            return (
                index,
                lax.rem(item, jnp.int32(pack.num_packs)),
                slot,
                kv_len,
                begin,
                num_blocks * pack.kv_heads,
            )

        @pl.when(lax.axis_index("warpgroup") == LOAD)
        def _load():
            def load_item(step, count):
                _, pack_idx, slot, kv_len, begin, num_blocks = item_at(step)
                buffer = lax.rem(step, jnp.int32(2))
                pl.when(step >= 2)(functools.partial(plgpu.barrier_wait, q_free.at[buffer]))
                heads = pl.ds(pl.multiple_of(pack_idx * pack.columns, MIN_PACK), pack.columns)
                plgpu.copy_gmem_to_smem(q_gmem.at[slot, heads], q_smem.at[buffer], q_ready.at[buffer])
                last_page = lax.div(kv_len - 1, jnp.int32(page_size))

                def page_ids(block):
                    token = begin + lax.div(block, jnp.int32(pack.kv_heads)) * block_kv
                    pages = [
                        lax.div(token + copy * copy_rows, jnp.int32(page_size)) for copy in range(num_copies)
                    ]
                    return tuple(tables_gmem[slot, jnp.minimum(page, last_page)] for page in pages)

                def load_block(block, pages):
                    next_pages = page_ids(block + 1)  # read while this block's copies wait for room
                    use = count + block
                    stage = lax.rem(use, jnp.int32(num_stages))
                    token = begin + lax.div(block, jnp.int32(pack.kv_heads)) * block_kv
                    row = (
                        pl.multiple_of(lax.rem(token, jnp.int32(page_size)), copy_rows)
                        if num_copies == 1
                        else 0
                    )
                    head = pack_idx * pack.kv_heads + lax.rem(block, jnp.int32(pack.kv_heads))
                    for kind, smem, ready, free in (
                        (0, k_smem, k_ready, k_free),
                        (1, v_smem, v_ready, v_free),
                    ):
                        pl.when(use >= num_stages)(functools.partial(plgpu.barrier_wait, free.at[stage]))
                        for copy, page in enumerate(pages):
                            plgpu.copy_gmem_to_smem(
                                kv_gmem.at[page, kind, head, pl.ds(row, copy_rows)],
                                smem.at[stage, pl.ds(copy * copy_rows, copy_rows)],
                                ready.at[stage],
                            )
                    return next_pages

                lax.fori_loop(0, num_blocks, load_block, page_ids(jnp.int32(0)))
                return count + num_blocks

            count = lax.fori_loop(0, num_steps, load_item, jnp.int32(0))
            for buffer in range(2):  # a barrier must not be left with an arrival that nobody awaited
                pl.when(buffer < num_steps)(functools.partial(plgpu.barrier_wait, q_free.at[buffer]))
            for stage in range(num_stages):
                for free in (k_free, v_free):
                    pl.when(stage < count)(functools.partial(plgpu.barrier_wait, free.at[stage]))

        @pl.when(lax.axis_index("warpgroup") == COMPUTE)
        def _compute():
            tile = (block_kv, pack.columns)
            row = plgpu.broadcasted_iota(jnp.int32, tile, 0, layout=WGMMA)
            head_of_column = lax.div(plgpu.broadcasted_iota(jnp.int32, tile, 1, layout=WGMMA), pack.group)

            def compute_item(step, count):
                index, pack_idx, _, kv_len, begin, num_blocks = item_at(step)
                buffer = lax.rem(step, jnp.int32(2))
                plgpu.barrier_wait(q_ready.at[buffer])

                def compute_block(block, carry):
                    acc, peak, total = carry
                    stage = lax.rem(count + block, jnp.int32(num_stages))
                    token = begin + lax.div(block, jnp.int32(pack.kv_heads)) * block_kv
                    own = head_of_column == lax.rem(block, jnp.int32(pack.kv_heads))
                    plgpu.barrier_wait(k_ready.at[stage])

                    def scores(product):
                        plgpu.wgmma(product, k_smem.at[stage], q_smem.at[buffer].T)
                        return product[...]

                    s = pl.run_scoped(scores, plgpu.ACC(tile, F32)) * (scale * LOG2E)
                    plgpu.barrier_arrive(k_free.at[stage])
                    s = jnp.where((row + token < kv_len) & own, s, NEG_INF)
                    new_peak = jnp.maximum(peak, s.max(axis=0))
                    decay = jnp.exp2(peak - new_peak)
                    p = jnp.exp2(s - lax.broadcast_in_dim(new_peak, tile, [1]))
                    p = jnp.where(own, p, 0.0)  # other heads' columns: a peak of NEG_INF would give 1
                    total = total * lax.broadcast_in_dim(decay, tile, [1]) + p
                    p_smem.T[...] = p.astype(q.dtype)
                    plgpu.commit_smem()
                    plgpu.barrier_wait(v_ready.at[stage])

                    @pl.when(token + block_kv > kv_len)
                    def _clear():  # 0 x NaN of an earlier owner is NaN
                        v_row = plgpu.broadcasted_iota(jnp.int32, (block_kv, head_dim), 0, layout=WGMMA)
                        v = v_smem[stage]
                        v_smem[stage] = jnp.where(v_row + token < kv_len, v, jnp.zeros_like(v))
                        plgpu.commit_smem()

                    def values(product):
                        plgpu.wgmma(product, v_smem.at[stage].T, p_smem.T)
                        return product[...]

                    weighted = pl.run_scoped(values, plgpu.ACC((head_dim, pack.columns), F32))
                    plgpu.barrier_arrive(v_free.at[stage])
                    acc = acc * lax.broadcast_in_dim(decay, acc.shape, [1]) + weighted
                    return acc, new_peak, total

                acc = plgpu.layout_cast(jnp.zeros((head_dim, pack.columns), F32), WGMMA)
                peak = plgpu.layout_cast(jnp.full((pack.columns,), NEG_INF, F32), WGMMA.reduce(0))
                total = plgpu.layout_cast(jnp.zeros(tile, F32), WGMMA)
                acc, peak, total = lax.fori_loop(0, num_blocks, compute_block, (acc, peak, total))
                plgpu.barrier_arrive(q_free.at[buffer])
                out_gmem[pack_idx, index] = acc
                peak_gmem[pack_idx, index] = peak
                total_gmem[pack_idx, index] = total.sum(axis=0)
                return count + num_blocks

            lax.fori_loop(0, num_steps, compute_item, jnp.int32(0))

    per_item = (pack.num_packs, max_items)
    ready = plgpu.Barrier(num_arrivals=num_copies, num_barriers=num_stages)
    free = plgpu.Barrier(num_barriers=num_stages)
    return plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct((*per_item, head_dim, pack.columns), F32),
            jax.ShapeDtypeStruct((*per_item, pack.columns), F32),
            jax.ShapeDtypeStruct((*per_item, pack.columns), F32),
        ),
        scratch_types=(
            swizzled_smem((2, pack.columns, head_dim), q.dtype),
            swizzled_smem((num_stages, block_kv, head_dim), q.dtype),
            swizzled_smem((num_stages, block_kv, head_dim), q.dtype),
            swizzled_smem((pack.columns, block_kv), q.dtype),
            plgpu.Barrier(num_barriers=2),
            plgpu.Barrier(num_barriers=2),
            *(ready, free, ready, free),
        ),
        grid=(num_ctas,),
        grid_names=("cta",),
        num_threads=2,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=_compat.mosaic_interpret(interpret),
        kernel_name="paged_decode",
    )(q, kv_pages, block_tables, kv_lens, work.slots, work.chunks, work.first)


def _combine(
    partial: Float[Array, "packs items head_dim columns"],
    peaks: Float[Array, "packs items columns"],
    totals: Float[Array, "packs items columns"],
    first: Int[Array, " slots_plus_1"],
    slots: int,
    dtype: Any,
    interpret: Any,
) -> Float[Array, "slots heads head_dim"]:
    """The softmax over each slot's chunks, in their order; zeros for slots without any."""
    num_packs, max_items, head_dim, columns = partial.shape
    by_column = functools.partial(
        lax.broadcast_in_dim, shape=(COMBINE_ROWS, columns), broadcast_dimensions=[1]
    )

    def kernel(partial_gmem, peaks_gmem, totals_gmem, first_gmem, out_gmem, out_smem):
        slot, pack_idx = lax.axis_index("slot"), lax.axis_index("pack")
        dims = pl.ds(pl.multiple_of(lax.axis_index("rows") * COMBINE_ROWS, COMBINE_ROWS), COMBINE_ROWS)
        begin, end = first_gmem[slot], first_gmem[slot + 1]

        def load(ref, layout):
            return plgpu.load(ref, layout=layout, optimized=False)  # type: ignore[call-arg]  # 0.10's

        def combine_some(turn, carry):
            acc, peak, total = carry
            items = [begin + turn * COMBINE_UNROLL + lane for lane in range(COMBINE_UNROLL)]
            live = [item < end for item in items]
            items = [jnp.minimum(item, jnp.minimum(end, max_items) - 1) for item in items]
            outs = [load(partial_gmem.at[pack_idx, item, dims], WGMMA) for item in items]
            sums = [load(totals_gmem.at[pack_idx, item], WGMMA.reduce(0)) for item in items]
            tops = [load(peaks_gmem.at[pack_idx, item], WGMMA.reduce(0)) for item in items]
            tops = [top + jnp.where(ok, 0.0, NEG_INF) for ok, top in zip(live, tops, strict=True)]
            new_peak = functools.reduce(jnp.maximum, tops, peak)
            decay = jnp.exp2(peak - new_peak)
            acc, total = acc * by_column(decay), total * decay
            for out, top, weights in zip(outs, tops, sums, strict=True):
                factor = jnp.exp2(top - new_peak)
                acc, total = acc + out * by_column(factor), total + weights * factor
            return acc, new_peak, total

        num_turns = lax.div(end - begin + (COMBINE_UNROLL - 1), jnp.int32(COMBINE_UNROLL))
        zeros = plgpu.layout_cast(jnp.zeros((columns,), F32), WGMMA.reduce(0))
        acc = plgpu.layout_cast(jnp.zeros((COMBINE_ROWS, columns), F32), WGMMA)
        acc, _, total = lax.fori_loop(0, num_turns, combine_some, (acc, zeros + NEG_INF, zeros))
        out = acc / by_column(jnp.where(total == 0, 1.0, total))
        out += jnp.where(end > max_items, jnp.nan, 0.0)  # the plan had no room: do not answer with a part
        out_smem.T[...] = out.astype(dtype)
        plgpu.commit_smem()
        heads = pl.ds(pl.multiple_of(pack_idx * columns, MIN_PACK), columns)
        plgpu.copy_smem_to_gmem(out_smem, out_gmem.at[slot, heads, dims])
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((slots, num_packs * columns, head_dim), dtype),
        scratch_types=(swizzled_smem((columns, COMBINE_ROWS), dtype),),
        grid=(head_dim // COMBINE_ROWS, num_packs, slots),
        grid_names=("rows", "pack", "slot"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=_compat.mosaic_interpret(interpret),
        kernel_name="paged_decode_combine",
    )(partial, peaks, totals, first)
