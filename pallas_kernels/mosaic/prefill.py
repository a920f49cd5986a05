"""Paged prefill attention for Hopper in Pallas Mosaic GPU.

FlashAttention (Dao 2023; Shah et al. 2024) over packed queries of any lengths, whose keys and values lie in
the cache: a fresh prompt, a chunk of one and a prompt behind a cached prefix are one case. A CTA takes one
tile of `PrefillWork` for one KV head. Two warpgroups compute, with 64 rows of (head of the group,
token) each; a third walks the block table and copies pages into a ring in shared memory.
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
from pallas_kernels.problem import TOKEN_ALIGN, Problem
from pallas_kernels.softmax import LOG2E, NEG_INF
from pallas_kernels.work_list import PrefillWork

COMPUTE_WARPGROUPS = 2
LOAD = 2  # the warpgroup after them
ROWS = 64  # of a compute warpgroup: wgmma's M
TILE_ROWS = COMPUTE_WARPGROUPS * ROWS
LOAD_REGISTERS = 56  # of a thread; together with two warpgroups' 224 they are the 3 * 168 of a CTA
COMPUTE_REGISTERS = 224
MAX_GROUP = TILE_ROWS // TOKEN_ALIGN
HEAD_DIMS = (64, 128)
WGMMA = plgpu.Layout.WGMMA
F32 = jnp.float32


class Tiles(NamedTuple):
    """How the kernel cuts up its work; a tile has 128 rows of (head of the group, token)."""

    block_kv: int
    num_stages: int
    p_in_registers: bool  # the probabilities, or through shared memory


def default_tiles(problem: Problem, num_cores: int, interpreted: bool) -> Tiles:
    """Tiles that compile without spills for every shape. The interpreter knows no operand in registers."""
    del num_cores
    return Tiles(128, 2 if problem.head_dim > 64 else 4, not interpreted)


def declines(problem: Problem) -> str | None:
    """Why this kernel does not take a problem, or None."""
    if not _compat.HAS_MOSAIC:
        return f"jax {jax.__version__}: Mosaic GPU needs jax >= 0.11"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"dtype {problem.dtype}: bfloat16 or float16 only"
    if problem.head_dim not in HEAD_DIMS:
        return f"head_dim {problem.head_dim}: one of {HEAD_DIMS} only"
    if problem.group > MAX_GROUP:
        return f"group {problem.group}: at most {MAX_GROUP}"
    if problem.tokens % TOKEN_ALIGN:
        return f"tokens {problem.tokens}: multiples of {TOKEN_ALIGN} only"
    return None


def tile_tokens(problem: Problem, tiles: Tiles) -> int:
    """Query tokens of a tile."""
    return TILE_ROWS // pl.next_power_of_2(problem.group)


class _Sizes(NamedTuple):
    """How a problem is cut up."""

    group: int
    heads: int  # of a compute warpgroup, the group padded to a power of two
    tokens: int  # of a compute warpgroup
    page_size: int
    block_kv: int
    copy_rows: int  # of one copy: a page, or the part of it that makes up a block
    num_stages: int

    @classmethod
    def of(cls, group: int, page_size: int, tiles: Tiles) -> _Sizes:
        heads = max(1, pl.next_power_of_2(group) // COMPUTE_WARPGROUPS)
        copy_rows = min(page_size, tiles.block_kv)
        return cls(group, heads, ROWS // heads, page_size, tiles.block_kv, copy_rows, tiles.num_stages)

    @property
    def num_copies(self) -> int:
        return self.block_kv // self.copy_rows


class _Scratch(NamedTuple):
    q: Any  # [warpgroups, ROWS, head_dim]; the output, when the queries are done with
    q_ready: Any
    k: Ring
    v: Ring
    p: Any  # [warpgroups, ROWS, block_kv], or None
    turn: Any  # barrier of the compute warpgroups


class _Tile(NamedTuple):
    """What a CTA works on: scalars."""

    slot: Any
    start: Any  # of its tokens in the packed axis
    position: Any  # of its first token in the sequence
    num_tokens: Any
    kv_head: Any

    @property
    def kv_end(self) -> Any:
        """Keys that the tile's last token sees."""
        return self.position + self.num_tokens

    def num_blocks(self, sizes: _Sizes) -> Any:
        return lax.div(self.kv_end + (sizes.block_kv - 1), jnp.int32(sizes.block_kv))


def paged_prefill(
    q: Float[Array, "tokens heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    work: PrefillWork,
    *,
    scale: float,
    tiles: Tiles,
    interpret: Any = False,
) -> Float[Array, "tokens heads head_dim"]:
    """Causal attention of packed queries over their sequences' pages; rows of no slot hold anything.

    `work` comes from `make_prefill_work` with this module's `tile_tokens`. `scale` is positive.
    """
    _, num_heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv_pages.shape
    sizes = _Sizes.of(num_heads // kv_heads, page_size, tiles)

    def kernel(q_gmem, kv_gmem, tables_gmem, work_gmem, out_gmem, scratch):
        index, warpgroup = lax.axis_index("tile"), lax.axis_index("warpgroup")
        slot, start, position, num_tokens = (field[index] for field in work_gmem)
        tile = _Tile(slot, start, position, num_tokens, lax.axis_index("kv_head"))

        def load():
            plgpu.set_max_registers(LOAD_REGISTERS, action="decrease")
            _load_pages(sizes, tile, kv_gmem, tables_gmem, scratch)

        def compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            _load_queries(sizes, tile, q_gmem, scratch)
            out_smem = scratch.q.at[warpgroup]  # the queries are done with
            out_smem[...] = _attend(sizes, tile, scale, scratch).astype(q.dtype)
            plgpu.commit_smem()
            _store(sizes, tile, out_smem, out_gmem)

        pl.when(tile.num_tokens > 0)(lambda: lax.cond(warpgroup == LOAD, load, compute))

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types=(_scratch(sizes, head_dim, q.dtype, tiles.p_in_registers),),
        grid=(work.slots.shape[0], kv_heads),  # the last axis is the fastest: long tiles of all heads first
        grid_names=("tile", "kv_head"),
        num_threads=COMPUTE_WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=_compat.mosaic_interpret(interpret),
        kernel_name="paged_prefill",
    )(q, kv_pages, block_tables, work)


def _scratch(sizes: _Sizes, head_dim: int, dtype: Any, p_in_registers: bool) -> _Scratch:
    shape = (sizes.num_stages, sizes.block_kv, head_dim)
    counts = {"num_copies": sizes.num_copies, "num_readers": COMPUTE_WARPGROUPS}
    return _Scratch(
        q=swizzled_smem((COMPUTE_WARPGROUPS, ROWS, head_dim), dtype),
        q_ready=plgpu.Barrier(num_arrivals=sizes.heads, num_barriers=COMPUTE_WARPGROUPS),
        k=Ring.scratch(shape, dtype, **counts),
        v=Ring.scratch(
            shape, dtype, **counts, spare_barriers=1
        ),  # the loader's own: rows to be cleared first
        p=None if p_in_registers else swizzled_smem((COMPUTE_WARPGROUPS, ROWS, sizes.block_kv), dtype),
        turn=plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS, num_barriers=1),
    )


def _load_pages(sizes: _Sizes, tile: _Tile, kv_gmem: Any, tables_gmem: Any, scratch: _Scratch) -> None:
    """Copy the sequence's blocks into the rings, and clear V's rows behind the tile's last key."""
    num_blocks = tile.num_blocks(sizes)
    last_page = lax.div(tile.kv_end - 1, jnp.int32(sizes.page_size))
    last_is_partial = lax.rem(tile.kv_end, jnp.int32(sizes.block_kv)) != 0

    def page_ids(block):
        tokens = (block * sizes.block_kv + i * sizes.copy_rows for i in range(sizes.num_copies))
        pages = (jnp.minimum(lax.div(token, jnp.int32(sizes.page_size)), last_page) for token in tokens)
        return tuple(tables_gmem[tile.slot, page] for page in pages)

    def copy(kind, block, pages, smem, ready):
        row = lax.rem(block * sizes.block_kv, jnp.int32(sizes.page_size))  # not 0 in the rest of a page
        rows = pl.ds(pl.multiple_of(row, sizes.copy_rows), sizes.copy_rows)
        for i, page in enumerate(pages):
            part = pl.ds(i * sizes.copy_rows, sizes.copy_rows)
            plgpu.copy_gmem_to_smem(kv_gmem.at[page, kind, tile.kv_head, rows], smem.at[part], ready)

    def load_block(block, pages):
        next_pages = page_ids(block + 1)  # read while this block's copies wait for room
        stage = lax.rem(block, jnp.int32(sizes.num_stages))
        v_smem = scratch.v.smem.at[stage]
        pl.when(block >= sizes.num_stages)(lambda: plgpu.barrier_wait(scratch.k.free.at[stage]))
        copy(0, block, pages, scratch.k.smem.at[stage], scratch.k.ready.at[stage])
        pl.when(block >= sizes.num_stages)(lambda: plgpu.barrier_wait(scratch.v.free.at[stage]))
        to_clear = last_is_partial & (block == num_blocks - 1)
        copy(1, block, pages, v_smem, scratch.v.ready.at[jnp.where(to_clear, sizes.num_stages, stage)])

        @pl.when(to_clear)
        def _clear():
            plgpu.barrier_wait(scratch.v.ready.at[sizes.num_stages])
            clear_rows(v_smem, tile.kv_end - block * sizes.block_kv)
            for _ in range(sizes.num_copies):
                plgpu.barrier_arrive(scratch.v.ready.at[stage])

        return next_pages

    lax.fori_loop(0, num_blocks, load_block, page_ids(jnp.int32(0)))
    scratch.k.drain(num_blocks)
    scratch.v.drain(num_blocks)


def _first_row(sizes: _Sizes, tile: _Tile) -> tuple[Any, Any]:
    """This warpgroup's first head of the group, and its first token in the packed axis."""
    warpgroup = lax.axis_index("warpgroup")
    if sizes.group == 1:  # the warpgroups share the head, and have half of the tokens each
        return jnp.int32(0), tile.start + warpgroup * sizes.tokens
    return warpgroup * sizes.heads, tile.start


def _load_queries(sizes: _Sizes, tile: _Tile, q_gmem: Any, scratch: _Scratch) -> None:
    """Rows of (head, token), straight from the packed queries. Tokens behind the tile's last are of another
    tile or, behind the end of the axis, zeros of TMA's; padding heads repeat the group's last."""
    warpgroup = lax.axis_index("warpgroup")
    first_head, start = _first_row(sizes, tile)
    ready = scratch.q_ready.at[warpgroup]

    @pl.loop(0, sizes.heads)
    def _copy(i):
        head = tile.kv_head * sizes.group + jnp.minimum(first_head + i, sizes.group - 1)
        tokens = pl.ds(pl.multiple_of(start, TOKEN_ALIGN), sizes.tokens)
        rows = pl.ds(pl.multiple_of(i * sizes.tokens, TOKEN_ALIGN), sizes.tokens)
        plgpu.copy_gmem_to_smem(q_gmem.at[tokens, head], scratch.q.at[warpgroup, rows], ready)

    plgpu.barrier_wait(ready)


class _Softmax(NamedTuple):
    """An online softmax under way (Milakov & Gimelshein 2018), in units of log 2."""

    out: Any  # [ROWS, head_dim], not normalised
    peak: Any  # [ROWS], the largest score
    total: Any  # [ROWS], sum of weights

    @classmethod
    def empty(cls, head_dim: int) -> _Softmax:
        return cls(
            plgpu.layout_cast(jnp.zeros((ROWS, head_dim), F32), WGMMA),
            plgpu.layout_cast(jnp.full((ROWS,), NEG_INF, F32), WGMMA.reduce(1)),
            plgpu.layout_cast(jnp.zeros((ROWS,), F32), WGMMA.reduce(1)),
        )

    def add(self, scores: Any, scale: float) -> tuple[_Softmax, Any]:
        """The state before the values of a block are added, and the weights to add them with."""
        scale *= LOG2E
        peak = jnp.maximum(self.peak, scores.max(axis=1) * scale)
        weights = jnp.exp2(scores * scale - _by_row(peak, scores.shape))  # one multiply-add per score
        decay = jnp.exp2(self.peak - peak)
        total = self.total * decay + weights.sum(axis=1)
        return _Softmax(self.out * _by_row(decay, self.out.shape), peak, total), weights

    def normalised(self) -> Any:
        return self.out * _by_row(1.0 / self.total, self.out.shape)


def _by_row(x: Any, shape: tuple[int, ...]) -> Any:
    return lax.broadcast_in_dim(x, shape, [0])


def _attend(sizes: _Sizes, tile: _Tile, scale: float, scratch: _Scratch) -> Float[Array, "ROWS head_dim"]:
    """Visit the blocks that all rows see in full, then those with a mask."""
    warpgroup = lax.axis_index("warpgroup")
    q_smem = scratch.q.at[warpgroup]
    p_smem = None if scratch.p is None else scratch.p.at[warpgroup]
    _, start = _first_row(sizes, tile)
    first_position = tile.position + (start - tile.start)
    num_blocks = tile.num_blocks(sizes)

    def visit(block, state, *, masked):
        stage = lax.rem(block, jnp.int32(sizes.num_stages))
        plgpu.barrier_wait(scratch.k.ready.at[stage])
        scores = _scores(q_smem, scratch.k.smem.at[stage], scratch.turn.at[0])
        plgpu.barrier_arrive(scratch.k.free.at[stage])
        if masked:
            scores = _masked(scores, first_position - block * sizes.block_kv, sizes.tokens)
        state, weights = state.add(scores, scale)
        weights = weights.astype(q_smem.dtype)
        if p_smem is not None:
            p_smem[...] = weights
            plgpu.commit_smem()
        state, weights = lax.optimization_barrier((state, weights))  # nothing of it sinks below the wait
        plgpu.barrier_arrive(scratch.turn.at[0])
        plgpu.barrier_wait(scratch.v.ready.at[stage])
        plgpu.barrier_wait(scratch.turn.at[0])
        out = _weighted_sum(state.out, weights if p_smem is None else p_smem, scratch.v.smem.at[stage])
        plgpu.barrier_arrive(scratch.v.free.at[stage])
        return state._replace(out=out)

    pl.when(warpgroup == 1)(lambda: _pass_turn(scratch.turn.at[0]))
    num_full = jnp.minimum(lax.div(first_position + 1, jnp.int32(sizes.block_kv)), num_blocks)
    state = _Softmax.empty(q_smem.shape[1])
    state = lax.fori_loop(0, num_full, functools.partial(visit, masked=False), state)
    state = lax.fori_loop(num_full, num_blocks, functools.partial(visit, masked=True), state)
    pl.when(warpgroup == 0)(lambda: _pass_turn(scratch.turn.at[0]))
    return state.normalised()


def _pass_turn(turn: Any) -> None:
    """The compute warpgroups take turns at the tensor cores: while one computes weights @ V and the next
    scores, the other is at its softmax (the ping-pong of FlashAttention-3)."""
    plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(turn)


def _scores(q_smem: Any, k_smem: Any, turn: Any) -> Float[Array, "ROWS block_kv"]:
    def product(acc):
        plgpu.wgmma(acc, q_smem, k_smem.T)
        _pass_turn(turn)
        return acc[...]

    return pl.run_scoped(product, plgpu.ACC((ROWS, k_smem.shape[0]), F32))


def _masked(scores: Any, first_position: Any, tokens: int) -> Float[Array, "ROWS block_kv"]:
    """No token sees a later one; `first_position` of the rows is relative to the block."""
    row = plgpu.broadcasted_iota(jnp.int32, scores.shape, 0, layout=WGMMA)
    key = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=WGMMA)
    token = lax.rem(row, jnp.full_like(row, tokens))
    return jnp.where(key <= token + first_position, scores, NEG_INF)


def _weighted_sum(out: Any, weights: Any, v_smem: Any) -> Float[Array, "ROWS head_dim"]:
    """`out + weights @ V`, with the weights in registers (faster), or in shared memory (interpretable)."""

    def product(acc):
        if isinstance(weights, jax.Array):
            acc[...] = out
            plgpu.wgmma(acc, weights, v_smem)
            return acc[...]
        plgpu.wgmma(acc, weights, v_smem)
        return out + acc[...]

    return pl.run_scoped(product, plgpu.ACC(out.shape, F32))


def _store(sizes: _Sizes, tile: _Tile, out_smem: Any, out_gmem: Any) -> None:
    """Write the tile's own rows only, in pieces of powers of two: the next token may be another slot's, whose
    start is aligned to the smallest piece."""
    first_head, start = _first_row(sizes, tile)
    num_tokens = jnp.clip(tile.num_tokens - (start - tile.start), 0, sizes.tokens)
    num_tokens = lax.div(num_tokens + (TOKEN_ALIGN - 1), jnp.int32(TOKEN_ALIGN)) * TOKEN_ALIGN

    @pl.loop(0, jnp.minimum(sizes.heads, sizes.group - first_head))
    def _copy_head(i):
        head = tile.kv_head * sizes.group + first_head + i

        def copy(first, size):
            rows = pl.ds(pl.multiple_of(i * sizes.tokens + first, TOKEN_ALIGN), size)
            tokens = pl.ds(pl.multiple_of(start + first, TOKEN_ALIGN), size)
            plgpu.copy_smem_to_gmem(out_smem.at[rows], out_gmem.at[tokens, head])

        size = sizes.tokens
        while size >= TOKEN_ALIGN:
            first = lax.div(num_tokens, jnp.int32(2 * size)) * (2 * size)  # behind the larger pieces
            pl.when(num_tokens - first >= size)(functools.partial(copy, first, size))
            size //= 2

    plgpu.wait_smem_to_gmem(0)
