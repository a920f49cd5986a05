"""Packed causal prefill over the paged KV cache in Pallas Triton, for Ampere and Hopper.

A program computes one tile (`PrefillWork`) for one KV head: its rows are the tile's tokens times the
heads of the group. Keys and values come from the cache alone, so a fresh prompt, a chunk of one, and a
prompt behind a cached prefix are one case (FlashAttention-2, Dao 2023, over pages).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from pallas_kernels.problem import Problem
from pallas_kernels.softmax import LOG2E, NEG_INF
from pallas_kernels.triton import common as triton_common
from pallas_kernels.triton.common import Softmax, column_parts
from pallas_kernels.work_list import PrefillWork


class Tiles(NamedTuple):
    """How the kernel cuts up its work."""

    block_q: int  # rows of (token, head of the group)
    block_kv: int
    num_warps: int
    num_stages: int


def default_tiles(problem: Problem, num_cores: int, interpreted: bool) -> Tiles:
    """Tiles that compile without spills for every shape."""
    del problem, num_cores, interpreted
    return Tiles(64, 64, 4, 3)


def declines(problem: Problem) -> str | None:
    """Why this kernel does not take a problem, or None."""
    return triton_common.declines(problem)


def tile_tokens(problem: Problem, tiles: Tiles) -> int:
    """Query tokens per tile."""
    return tiles.block_q // problem.group


def paged_prefill(
    q: Float[Array, "tokens heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    work: PrefillWork,
    *,
    scale: float,
    tiles: Tiles,
    interpret: bool = False,
) -> Float[Array, "tokens heads head_dim"]:
    """Causal attention of the queries in `work`'s tiles of `tile_tokens`. Rows of no slot hold anything.

    Raises:
      ValueError: if `tiles.block_q` has no room for the heads of a group.
    """
    _, num_heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv_pages.shape
    group, (block_q, block_kv, num_warps, num_stages) = num_heads // kv_heads, tiles
    if block_q < group:
        raise ValueError(f"block_q={block_q}: must be at least the {group} heads of a group")
    parts = column_parts(head_dim)

    def paged_prefill_triton(
        q_ref, kv_ref, tables_ref, slots_ref, starts_ref, positions_ref, counts_ref, out_ref
    ):
        tile, kv_head = lax.div(pl.program_id(0), kv_heads), lax.rem(pl.program_id(0), kv_heads)
        slot, start, position, count = (r[tile] for r in (slots_ref, starts_ref, positions_ref, counts_ref))
        kv_end = position + count
        rows = jnp.arange(block_q)
        tokens, heads = lax.div(rows, group), kv_head * group + lax.rem(rows, group)

        def attend(q_parts, masked, block, state):
            keys = block * block_kv + jnp.arange(block_kv)
            places = jnp.minimum(keys, kv_end - 1) if masked else keys  # dead ones may hold NaN
            pages, offsets = tables_ref[slot, lax.div(places, page_size)], lax.rem(places, page_size)
            k = [kv_ref[pages, 0, kv_head, offsets, part] for part in parts]
            scores = triton_common.scores(q_parts, k) * (scale * LOG2E)
            if masked:
                scores = jnp.where(keys[None] <= position + tokens[:, None], scores, NEG_INF)
            v = [kv_ref[pages, 1, kv_head, offsets, part] for part in parts]
            return state.add(scores, v)

        @pl.when(count > 0)
        def _live():
            live_tokens = start + jnp.minimum(tokens, count - 1)
            q_parts = [q_ref[live_tokens, heads, part] for part in parts]
            num_full = lax.div(position + 1, block_kv)  # blocks that all rows see
            num_blocks = lax.div(kv_end + (block_kv - 1), block_kv)
            unmasked, masked = (functools.partial(attend, q_parts, flag) for flag in (False, True))
            state = lax.fori_loop(0, num_full, unmasked, Softmax.empty(block_q, parts))
            state = lax.fori_loop(num_full, num_blocks, masked, state)
            norm = 1 / state.total
            for part, out in zip(parts, state.out, strict=True):
                columns = part.start + jnp.arange(part.size)
                # Indices of dead rows stay apart from others': the interpreter stores old values there.
                index = jnp.broadcast_arrays((start + tokens)[:, None], heads[:, None], columns[None])
                live = jnp.broadcast_to((tokens < count)[:, None], out.shape)
                triton.store(out_ref.at[tuple(index)], (out * norm[:, None]).astype(q.dtype), mask=live)

    return pl.pallas_call(
        paged_prefill_triton,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(work.slots.shape[0] * kv_heads,),  # the heads of a tile side by side: longest tiles first
        compiler_params=triton.CompilerParams(num_warps=num_warps, num_stages=num_stages),
        interpret=interpret,
        name="paged_prefill_triton",
    )(q, kv_pages, block_tables, *work)
