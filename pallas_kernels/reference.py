"""Paged attention in plain JAX: the definition of correct, and the path for machines without a kernel.

Both functions walk the KV cache in blocks with an online softmax (Milakov & Gimelshein 2018), so they
hold one block of keys at a time whatever the context. A block that lies wholly behind a sequence's end
changes none of its bits, so a result does not depend on neighbours.

A GPU asks the host after each turn of a loop whether it goes on, and waits for the answer, unless the number
of turns is in the program. So it is: there is a loop for each power of two, and the host is asked once which
of them holds the longest sequence. Up to half of the turns are then behind its end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.softmax import NEG_INF
from pallas_kernels.work_list import make_prefill_work

BLOCK_KV = 128  # tokens of the cache per iteration
BLOCK_Q = 64  # query tokens per tile in prefill
TILES = 8  # of prefill, at once


class _Softmax(NamedTuple):
    """A softmax-weighted sum under way: unnormalised output, running maximum, sum of weights."""

    out: Float[Array, "*rows head_dim"]
    peak: Float[Array, "*rows"]
    total: Float[Array, "*rows"]

    @classmethod
    def empty(cls, q: Float[Array, "*rows head_dim"]) -> _Softmax:
        rows = q.shape[:-1]
        return cls(
            _zeros_after(q, jnp.float32), jnp.full(rows, NEG_INF, jnp.float32), jnp.zeros(rows, jnp.float32)
        )

    def normalised(self) -> Float[Array, "*rows head_dim"]:
        return self.out / jnp.where(self.total == 0, 1.0, self.total)[..., None]


def paged_decode(
    q: Float[Array, "slots heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    kv_lens: Int[Array, " slots"],
    *,
    scale: float,
) -> Float[Array, "slots heads head_dim"]:
    """One query per slot against the first `kv_lens` tokens of its sequence; zeros where that is 0."""
    slots, num_heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv_pages.shape
    grouped = q.reshape(slots, kv_heads, num_heads // kv_heads, head_dim)
    block_pages, padded_tables = _blocks(block_tables, page_size)

    def visit(block_idx: Int[Array, ""], state: _Softmax) -> _Softmax:
        pages = lax.dynamic_slice_in_dim(padded_tables, block_idx * block_pages, block_pages, axis=1)
        block = kv_pages[pages]  # [slots, block_pages, 2, kv_heads, page_size, head_dim]
        tokens = block_idx * block_pages * page_size + jnp.arange(block_pages * page_size)
        live = tokens[None] < kv_lens[:, None]
        k, v = _tokens_of(block[:, :, 0]), _tokens_of(block[:, :, 1])
        v = jnp.where(live[:, :, None, None], v, 0)  # 0 x NaN of an earlier owner is NaN
        scores = jnp.einsum("bkgd,bnkd->bkgn", grouped, k, preferred_element_type=jnp.float32) * scale
        return _accumulate(state, scores, live[:, None, None], v, "bkgn,bnkd->bkgd")

    num_blocks = _cdiv(jnp.max(kv_lens, initial=0), block_pages * page_size)
    state = _loop(num_blocks, padded_tables.shape[1] // block_pages, visit, _Softmax.empty(grouped))
    return state.normalised().reshape(q.shape).astype(q.dtype)


def paged_prefill(
    q: Float[Array, "tokens heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    q_starts: Int[Array, " slots"],
    q_lens: Int[Array, " slots"],
    kv_lens: Int[Array, " slots"],
    *,
    scale: float,
) -> Float[Array, "tokens heads head_dim"]:
    """Causal attention of packed queries: slot i's lie at `q_starts[i]`, its last `q_lens[i]` tokens of
    `kv_lens[i]` in the cache. Tokens of no slot come out as zeros.

    Tiles of BLOCK_Q queries of one slot are visited, TILES at once, those with the most keys first: gathering
    every token's own keys would take the square of the context in memory.
    """
    num_tokens, num_heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv_pages.shape
    block_pages, padded_tables = _blocks(block_tables, page_size)
    block_len = block_pages * page_size
    num_turns = -(-(num_tokens // BLOCK_Q + min(len(q_lens), num_tokens)) // TILES)
    work = make_prefill_work(q_starts, q_lens, kv_lens, tile_tokens=BLOCK_Q, num_tiles=num_turns * TILES)
    places = jnp.arange(BLOCK_Q)

    def tiles(turn: Int[Array, ""], out: Float[Array, "tokens kv_heads group head_dim"]):
        slots, starts, positions, counts = (
            lax.dynamic_slice_in_dim(field, turn * TILES, TILES) for field in work
        )
        row_live = places < counts[:, None]  # [tiles, BLOCK_Q]
        rows = jnp.where(row_live, starts[:, None] + places, num_tokens)  # out of range: nowhere
        queries = grouped.at[rows].get(mode="fill", fill_value=0)
        last_key = positions[:, None] + jnp.minimum(places, counts[:, None] - 1)  # it sees itself
        tables, lens = padded_tables[slots], positions + counts  # no tile sees more of its sequence

        def visit(block_idx: Int[Array, ""], state: _Softmax) -> _Softmax:
            pages = lax.dynamic_slice_in_dim(tables, block_idx * block_pages, block_pages, axis=1)
            block = kv_pages[pages]
            tokens = block_idx * block_len + jnp.arange(block_len)
            k, v = _tokens_of(block[:, :, 0]), _tokens_of(block[:, :, 1])
            v = jnp.where((tokens < lens[:, None])[:, :, None, None], v, 0)
            scores = jnp.einsum("btkgd,bnkd->btkgn", queries, k, preferred_element_type=jnp.float32) * scale
            live = tokens <= last_key[:, :, None]
            return _accumulate(state, scores, live[:, :, None, None], v, "btkgn,bnkd->btkgd")

        num_blocks = _cdiv(jnp.max(lens), block_len)
        state = _loop(num_blocks, padded_tables.shape[1] // block_pages, visit, _Softmax.empty(queries))
        result = state.normalised().astype(q.dtype)
        return out.at[rows].set(result, mode="drop")

    grouped = q.reshape(num_tokens, kv_heads, num_heads // kv_heads, head_dim)
    return lax.fori_loop(0, num_turns, tiles, _zeros_after(grouped, q.dtype)).reshape(q.shape)


def _loop(
    num_turns: Int[Array, ""],
    most: int,
    turn: Callable[[Int[Array, ""], _Softmax], _Softmax],
    state: _Softmax,
) -> _Softmax:
    """The next power of two of turns, so that their number is in the program; `most` at most. A turn too many
    must change nothing."""
    bounds = [0, *(1 << i for i in range((most - 1).bit_length())), most]
    loops = [functools.partial(lax.fori_loop, 0, bound, turn) for bound in bounds]
    return lax.switch(jnp.searchsorted(jnp.asarray(bounds), num_turns, method="compare_all"), loops, state)


def _zeros_after(x: Float[Array, "*n"], dtype: DTypeLike) -> Float[Array, "*n"]:
    """Zeros like `x` that are made when `x` is. The compiler makes constant zeros for all loops of a program
    at its start, and holds them until their loops run: a buffer for every layer of a model."""
    never = jnp.isneginf(x) & jnp.isposinf(x)
    return jnp.where(never, x, 0).astype(dtype)


def _cdiv(x: Int[Array, "*n"], y: int) -> Int[Array, "*n"]:
    return (x + y - 1) // y


def _blocks(
    block_tables: Int[Array, "slots width"], page_size: int
) -> tuple[int, Int[Array, "slots padded"]]:
    """Pages per block, and the tables padded with the null page to whole blocks."""
    block_pages = max(1, BLOCK_KV // page_size)
    return block_pages, jnp.pad(block_tables, ((0, 0), (0, -block_tables.shape[1] % block_pages)))


def _tokens_of(
    pages: Float[Array, "slots pages kv_heads page_size head_dim"],
) -> Float[Array, "slots block_len kv_heads head_dim"]:
    slots, num_pages, kv_heads, page_size, head_dim = pages.shape
    return pages.transpose(0, 1, 3, 2, 4).reshape(slots, num_pages * page_size, kv_heads, head_dim)


def _accumulate(state: _Softmax, scores: jax.Array, live: jax.Array, v: jax.Array, weigh: str) -> _Softmax:
    scores = jnp.where(live, scores, NEG_INF)
    peak = jnp.maximum(state.peak, scores.max(-1))
    weights = jnp.where(live, jnp.exp(scores - peak[..., None]), 0.0)
    decay = jnp.exp(state.peak - peak)
    fresh = jnp.einsum(weigh, weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return _Softmax(state.out * decay[..., None] + fresh, peak, state.total * decay + weights.sum(-1))
