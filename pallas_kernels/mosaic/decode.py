"""Paged decode attention for Hopper in Pallas Mosaic GPU.

A decode step is bounded by reading the cache once, so the kernel is a stream of page copies with a little
arithmetic behind it. A persistent grid walks a list of KV chunks (`DecodeWork`); one warpgroup copies
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
from pallas_kernels.mosaic.common import Ring, clear_rows, swizzled_smem
from pallas_kernels.problem import Problem
from pallas_kernels.softmax import LOG2E, NEG_INF
from pallas_kernels.work_list import DecodeWork

COMPUTE, LOAD = 0, 1  # warpgroups
HEAD_DIMS = (64, 128)
MIN_PACK = 8  # wgmma's N is a multiple of 8
COMBINE_ROWS = 64  # of head_dim per CTA of the second kernel: wgmma's row tile, so that the layouts agree
COMBINE_UNROLL = 8  # partial sums in flight
WGMMA = plgpu.Layout.WGMMA
F32 = jnp.float32


class Tiles(NamedTuple):
    """How the kernel cuts up its work."""

    chunk: int  # tokens of a work item
    block_kv: int  # tokens of a product
    num_stages: int  # of the ring of pages in shared memory
    num_ctas: int  # of the persistent grid


def default_tiles(problem: Problem, num_cores: int, interpreted: bool) -> Tiles:
    """Tiles that compile without spills for every shape.

    A ring of 3 x 32 KB leaves room for two CTAs on a core, one of 4 x 16 KB for three; more than are resident
    would run after the others. An item holds the chunks of a pack's heads: about 512 tokens of one head,
    beside 4 KB of partial sums.
    """
    del interpreted
    packed = max(1, MIN_PACK // problem.group)
    num_stages, ctas_per_core = (3, 2) if problem.head_dim > 64 else (4, 3)
    return Tiles(max(64, 512 // packed), 64, num_stages, ctas_per_core * num_cores)


def declines(problem: Problem) -> str | None:
    """Why this kernel does not take a problem, or None."""
    if not _compat.HAS_MOSAIC:
        return f"jax {jax.__version__}: Mosaic GPU needs jax >= 0.11"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"dtype {problem.dtype}: bfloat16 or float16 only"
    if problem.head_dim not in HEAD_DIMS:
        return f"head_dim {problem.head_dim}: one of {HEAD_DIMS} only"
    if problem.group > 64:
        return f"group {problem.group}: at most 64"
    return None


class Pack(NamedTuple):
    """How query heads are laid out in wgmma's columns."""

    group: int  # columns of a KV head, padding included
    columns: int
    kv_heads: int  # of a pack
    num_packs: int

    @classmethod
    def of(cls, group: int, kv_heads: int) -> Pack:
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
    tiles: Tiles,
    interpret: Any = False,
) -> Float[Array, "slots heads head_dim"]:
    """One query per slot against the first `kv_lens` tokens of its sequence; zeros where that is 0, NaN
    where the work list had no room for a slot."""
    slots, num_heads, head_dim = q.shape
    kv_heads = kv_pages.shape[2]
    group = num_heads // kv_heads
    pack = Pack.of(group, kv_heads)
    if pack.group != group:  # 3, 5, 6, 7 heads; XLA fuses the padding into what makes q
        q = jnp.pad(
            q.reshape(slots, kv_heads, group, head_dim), ((0, 0), (0, 0), (0, pack.group - group), (0, 0))
        )
        q = q.reshape(slots, kv_heads * pack.group, head_dim)
    partial = partials(q, kv_pages, block_tables, kv_lens, work, pack, scale, tiles, interpret)
    out = combine(*partial, work.first, slots, q.dtype, interpret)
    if pack.group != group:
        out = out.reshape(slots, kv_heads, pack.group, head_dim)[:, :, :group]
    return out.reshape(slots, num_heads, head_dim)


class _Sizes(NamedTuple):
    """How a problem is cut up."""

    pack: Pack
    tiles: Tiles
    page_size: int
    copy_rows: int  # of one copy: a page, or the part of it that makes up a block

    @classmethod
    def of(cls, pack: Pack, tiles: Tiles, page_size: int) -> _Sizes:
        return cls(pack, tiles, page_size, min(page_size, tiles.block_kv))

    @property
    def num_copies(self) -> int:
        return self.tiles.block_kv // self.copy_rows


class _Scratch(NamedTuple):
    """Shared memory and barriers of a CTA."""

    q: Any  # [2, columns, head_dim]: the next item's queries arrive while this one's are read
    q_ready: Any
    q_free: Any
    k: Ring
    v: Ring
    p: Any  # [columns, block_kv]


class _Item(NamedTuple):
    """A chunk of a sequence's cache, for one pack of heads: scalars."""

    index: Any  # in the work list
    pack: Any
    slot: Any
    kv_len: Any
    begin: Any  # its first token
    num_blocks: Any  # of all the pack's KV heads: head by head within a block of tokens

    def token(self, block: Any, sizes: _Sizes) -> Any:
        """The first token of a block."""
        return self.begin + lax.div(block, jnp.int32(sizes.pack.kv_heads)) * sizes.tiles.block_kv


def partials(
    q: Float[Array, "slots heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    kv_lens: Int[Array, " slots"],
    work: DecodeWork,
    pack: Pack,
    scale: float,
    tiles: Tiles,
    interpret: Any,
) -> tuple[
    Float[Array, "packs items head_dim columns"],
    Float[Array, "packs items columns"],
    Float[Array, "packs items columns"],
]:
    """Each chunk's unnormalised output, its largest score in units of log 2, and its sum of weights."""
    head_dim, max_items = q.shape[2], work.slots.shape[0]
    sizes = _Sizes.of(pack, tiles, kv_pages.shape[3])

    def kernel(q_gmem, kv_gmem, tables_gmem, lens_gmem, work_gmem, out_gmem, peak_gmem, total_gmem, scratch):
        cta = lax.axis_index("cta")
        num_items = jnp.minimum(work_gmem.first[work_gmem.first.shape[0] - 1], max_items) * pack.num_packs
        num_steps = lax.div(num_items - cta + (tiles.num_ctas - 1), jnp.int32(tiles.num_ctas))

        def item_at(step):
            return _item(cta + step * tiles.num_ctas, work_gmem, lens_gmem, sizes)

        @pl.when(lax.axis_index("warpgroup") == LOAD)
        def _load():
            def load(step, num_used):
                item = item_at(step)
                _load_queries(step, item, q_gmem, scratch, sizes)
                _load_blocks(num_used, item, kv_gmem, tables_gmem, scratch, sizes)
                return num_used + item.num_blocks

            num_used = lax.fori_loop(0, num_steps, load, jnp.int32(0))
            for buffer in range(2):
                pl.when(buffer < num_steps)(functools.partial(plgpu.barrier_wait, scratch.q_free.at[buffer]))
            scratch.k.drain(num_used)
            scratch.v.drain(num_used)

        @pl.when(lax.axis_index("warpgroup") == COMPUTE)
        def _compute():
            def compute(step, num_used):
                item = item_at(step)
                sums = _attend(step, num_used, item, scratch, sizes, scale)
                for gmem, x in zip((out_gmem, peak_gmem, total_gmem), sums, strict=True):
                    _compat.store_to_global(gmem.at[item.pack, item.index], x)
                return num_used + item.num_blocks

            lax.fori_loop(0, num_steps, compute, jnp.int32(0))

    per_item = (pack.num_packs, max_items)
    return plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct((*per_item, head_dim, pack.columns), F32),
            jax.ShapeDtypeStruct((*per_item, pack.columns), F32),
            jax.ShapeDtypeStruct((*per_item, pack.columns), F32),
        ),
        scratch_types=(_scratch(sizes, head_dim, q.dtype),),
        grid=(tiles.num_ctas,),
        grid_names=("cta",),
        num_threads=2,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=_compat.mosaic_interpret(interpret),
        kernel_name="paged_decode",
    )(q, kv_pages, block_tables, kv_lens, work)


def _scratch(sizes: _Sizes, head_dim: int, dtype: Any) -> _Scratch:
    columns, block_kv, num_stages = sizes.pack.columns, sizes.tiles.block_kv, sizes.tiles.num_stages
    shape = (num_stages, block_kv, head_dim)
    return _Scratch(
        q=swizzled_smem((2, columns, head_dim), dtype),
        q_ready=plgpu.Barrier(num_barriers=2),
        q_free=plgpu.Barrier(num_barriers=2),
        k=Ring.scratch(shape, dtype, num_copies=sizes.num_copies, num_readers=1),
        v=Ring.scratch(shape, dtype, num_copies=sizes.num_copies, num_readers=1),
        p=swizzled_smem((columns, block_kv), dtype),
    )


def _item(item: Any, work_gmem: DecodeWork, lens_gmem: Any, sizes: _Sizes) -> _Item:
    """The packs of a chunk lie side by side, so that CTAs which run together read neighbouring memory."""
    pack, (chunk, block_kv, _, _) = sizes.pack, sizes.tiles
    index = lax.div(item, jnp.int32(pack.num_packs))
    slot = work_gmem.slots[index]
    kv_len, begin = lens_gmem[slot], work_gmem.chunks[index] * chunk
    num_blocks = lax.div(jnp.minimum(kv_len - begin, chunk) + (block_kv - 1), jnp.int32(block_kv))
    pack_idx = lax.rem(item, jnp.int32(pack.num_packs))
    return _Item(index, pack_idx, slot, kv_len, begin, num_blocks * pack.kv_heads)


def _load_queries(step: Any, item: _Item, q_gmem: Any, scratch: _Scratch, sizes: _Sizes) -> None:
    buffer = lax.rem(step, jnp.int32(2))
    pl.when(step >= 2)(functools.partial(plgpu.barrier_wait, scratch.q_free.at[buffer]))
    columns = sizes.pack.columns
    heads = pl.ds(pl.multiple_of(item.pack * columns, MIN_PACK), columns)
    plgpu.copy_gmem_to_smem(q_gmem.at[item.slot, heads], scratch.q.at[buffer], scratch.q_ready.at[buffer])


def _load_blocks(
    num_used: Any, item: _Item, kv_gmem: Any, tables_gmem: Any, scratch: _Scratch, sizes: _Sizes
) -> None:
    """Copy an item's blocks into the rings, `num_used` blocks after the CTA's first."""
    last_page = lax.div(item.kv_len - 1, jnp.int32(sizes.page_size))

    def page_ids(block):
        tokens = (item.token(block, sizes) + copy * sizes.copy_rows for copy in range(sizes.num_copies))
        pages = (jnp.minimum(lax.div(token, jnp.int32(sizes.page_size)), last_page) for token in tokens)
        return tuple(tables_gmem[item.slot, page] for page in pages)

    def load_block(block, pages):
        next_pages = page_ids(block + 1)  # read while this block's copies wait for room
        use = num_used + block
        stage = lax.rem(use, jnp.int32(sizes.tiles.num_stages))
        rows = pl.ds(0, sizes.copy_rows)
        if sizes.copy_rows < sizes.page_size:
            first = lax.rem(item.token(block, sizes), jnp.int32(sizes.page_size))
            rows = pl.ds(pl.multiple_of(first, sizes.copy_rows), sizes.copy_rows)
        kv_heads = sizes.pack.kv_heads
        head = item.pack * kv_heads + lax.rem(block, jnp.int32(kv_heads))
        for kind, ring in enumerate((scratch.k, scratch.v)):
            pl.when(use >= sizes.tiles.num_stages)(functools.partial(plgpu.barrier_wait, ring.free.at[stage]))
            for copy, page in enumerate(pages):
                part = pl.ds(copy * sizes.copy_rows, sizes.copy_rows)
                plgpu.copy_gmem_to_smem(
                    kv_gmem.at[page, kind, head, rows], ring.smem.at[stage, part], ring.ready.at[stage]
                )
        return next_pages

    lax.fori_loop(0, item.num_blocks, load_block, page_ids(jnp.int32(0)))


def _attend(
    step: Any, num_used: Any, item: _Item, scratch: _Scratch, sizes: _Sizes, scale: float
) -> tuple[Any, Any, Any]:
    """An item's output [head_dim, columns], not normalised; largest scores and sums of weights [columns]."""
    pack, block_kv = sizes.pack, sizes.tiles.block_kv
    shape, head_dim = (block_kv, pack.columns), scratch.q.shape[2]
    row = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=WGMMA)
    head_of_column = lax.div(plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=WGMMA), pack.group)
    buffer = lax.rem(step, jnp.int32(2))
    plgpu.barrier_wait(scratch.q_ready.at[buffer])

    def visit(block, carry):
        out, peak, total = carry
        stage = lax.rem(num_used + block, jnp.int32(sizes.tiles.num_stages))
        num_live = item.kv_len - item.token(block, sizes)
        own = head_of_column == lax.rem(block, jnp.int32(pack.kv_heads))
        plgpu.barrier_wait(scratch.k.ready.at[stage])
        scores = _product(scratch.k.smem.at[stage], scratch.q.at[buffer].T) * (scale * LOG2E)
        plgpu.barrier_arrive(scratch.k.free.at[stage])
        scores = jnp.where((row < num_live) & own, scores, NEG_INF)
        new_peak = jnp.maximum(peak, scores.max(axis=0))
        decay = jnp.exp2(peak - new_peak)
        weights = jnp.exp2(scores - _by_column(new_peak, block_kv))
        weights = jnp.where(own, weights, 0.0)  # other heads' columns: a peak of NEG_INF would give 1
        total = total * _by_column(decay, block_kv) + weights
        scratch.p.T[...] = weights.astype(scratch.p.dtype)
        plgpu.commit_smem()
        plgpu.barrier_wait(scratch.v.ready.at[stage])
        pl.when(num_live < block_kv)(lambda: clear_rows(scratch.v.smem.at[stage], num_live))
        weighted = _product(scratch.v.smem.at[stage].T, scratch.p.T)
        plgpu.barrier_arrive(scratch.v.free.at[stage])
        return out * _by_column(decay, head_dim) + weighted, new_peak, total

    out = plgpu.layout_cast(jnp.zeros((head_dim, pack.columns), F32), WGMMA)
    peak = plgpu.layout_cast(jnp.full((pack.columns,), NEG_INF, F32), WGMMA.reduce(0))
    total = plgpu.layout_cast(jnp.zeros(shape, F32), WGMMA)
    out, peak, total = lax.fori_loop(0, item.num_blocks, visit, (out, peak, total))
    plgpu.barrier_arrive(scratch.q_free.at[buffer])
    return out, peak, total.sum(axis=0)


def _product(a_smem: Any, b_smem: Any) -> Any:
    """a @ b in float32; returns when both may be overwritten."""

    def multiply(acc):
        plgpu.wgmma(acc, a_smem, b_smem)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((a_smem.shape[0], b_smem.shape[1]), F32))


def _by_column(x: Any, rows: int) -> Any:
    return lax.broadcast_in_dim(x, (rows, x.shape[0]), [1])


def combine(
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
    by_column = functools.partial(_by_column, rows=COMBINE_ROWS)

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
        dropped = (end > max_items) & (end > begin)  # the work list had no room: do not answer with a part
        out += jnp.where(dropped, jnp.nan, 0.0)
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
