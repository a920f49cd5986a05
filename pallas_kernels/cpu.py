"""Paged attention in plain JAX for CPUs: `reference` with a cache that is read once and never transposed.

It differs from the reference in what a CPU's compiler makes of it. Keys and values are gathered head by head,
[kv_heads, tokens, head_dim], as matrix products take them; a loop visits a few sequences of similar length,
and ends with the longest of them, so that short ones do not read what the longest reads; and each turn
gathers about as much as a cache holds, however many sequences and heads there are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.softmax import NEG_INF

TURN_BYTES = 2**20  # of keys and values that decode gathers in a turn: they stay in a core's own cache
BLOCK_KV = 64  # tokens of a sequence in a turn, where many sequences decode
MAX_BLOCK_KV = 256  # where few do
TILE_KV = 128  # tokens of a sequence in a turn of prefill
TILE_Q = 128  # query tokens of a tile of prefill


class _Softmax(NamedTuple):
    """A softmax-weighted sum under way: unnormalised output, running maximum, sum of weights."""

    out: Float[Array, "*batch rows head_dim"]
    peak: Float[Array, "*batch rows"]
    total: Float[Array, "*batch rows"]

    @classmethod
    def empty(cls, q: Float[Array, "*batch rows head_dim"]) -> _Softmax:
        rows = jnp.zeros_like(q[..., 0], jnp.float32)
        return cls(jnp.zeros_like(q, jnp.float32), rows + NEG_INF, rows)

    def add(
        self, scores: Float[Array, "*batch rows tokens"], v: Float[Array, "*batch tokens head_dim"]
    ) -> _Softmax:
        """With more keys. Scores of those that a row does not see are NEG_INF, their weights 0: but for rows
        that see none at all, whose values must be 0."""
        peak = jnp.maximum(self.peak, scores.max(-1))
        weights = jnp.exp(scores - peak[..., None])
        decay = jnp.exp(self.peak - peak)
        fresh = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return _Softmax(self.out * decay[..., None] + fresh, peak, self.total * decay + weights.sum(-1))

    def normalised(self) -> Float[Array, "*batch rows head_dim"]:
        return self.out / jnp.where(self.total == 0, 1.0, self.total)[..., None]


def paged_decode(
    q: Float[Array, "slots heads head_dim"],
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    block_tables: Int[Array, "slots pages_per_seq"],
    kv_lens: Int[Array, " slots"],
    *,
    scale: float,
) -> Float[Array, "slots heads head_dim"]:
    """`reference.paged_decode`: one query per slot, zeros where `kv_lens` is 0."""
    slots, num_heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv_pages.shape
    group, block_pages = _decode_turn(slots, block_tables.shape[1], kv_pages)
    block_len = block_pages * page_size
    order = jnp.argsort(kv_lens, descending=True, stable=True)
    dead = ((0, -slots % group), (0, 0))  # slots behind the last, so that groups are whole
    queries = jnp.pad(q.reshape(slots, -1)[order], dead).reshape(
        -1, kv_heads, num_heads // kv_heads, head_dim
    )
    tables = jnp.pad(_whole_blocks(block_tables, block_pages)[order], dead)
    lens = jnp.pad(kv_lens[order], dead[0])

    def attend(group_idx: Int[Array, ""], out: Float[Array, "padded kv_heads group head_dim"]):
        start = group_idx * group
        of_group = [lax.dynamic_slice_in_dim(array, start, group) for array in (queries, tables, lens)]
        group_q, group_tables, group_lens = of_group

        def visit(block_idx: Int[Array, ""], state: _Softmax) -> _Softmax:
            pages = lax.dynamic_slice_in_dim(group_tables, block_idx * block_pages, block_pages, axis=1)
            num_live = group_lens - block_idx * block_len  # of the block's tokens
            k, v = _gather(kv_pages, pages, num_live)
            # As keys times queries: the larger operand would be transposed if it came second.
            scores = jnp.matmul(k, group_q.swapaxes(-1, -2), preferred_element_type=jnp.float32) * scale
            live = jnp.arange(block_len) < num_live[:, None]
            scores = jnp.where(live[:, None, :, None], scores, NEG_INF)
            return state.add(scores.swapaxes(-1, -2), v)

        num_blocks = _cdiv(group_lens[0], block_len)  # of the longest
        state = lax.fori_loop(0, num_blocks, visit, _Softmax.empty(group_q))
        return lax.dynamic_update_slice_in_dim(out, state.normalised().astype(q.dtype), start, axis=0)

    num_groups = _cdiv((kv_lens > 0).sum(), group)  # with a live slot
    out = lax.fori_loop(0, num_groups, attend, jnp.zeros_like(queries))
    return out.reshape(-1, num_heads, head_dim)[jnp.argsort(order)]


def _decode_turn(slots: int, pages_per_seq: int, kv_pages: jax.Array) -> tuple[int, int]:
    """How many slots a turn of decode's loop visits, and how many pages of each."""
    page_size = kv_pages.shape[3]
    tokens = TURN_BYTES // (math.prod(kv_pages.shape[1:]) // page_size * kv_pages.dtype.itemsize)
    group = max(1, min(slots, tokens // BLOCK_KV))
    block_len = max(BLOCK_KV, min(MAX_BLOCK_KV, tokens // group))
    return group, max(1, min(pages_per_seq, block_len // page_size))


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
    """`reference.paged_prefill`: causal attention of packed queries, zeros for tokens of no slot."""
    num_tokens, num_heads, head_dim = q.shape
    _, _, kv_heads, page_size, _ = kv_pages.shape
    tile_len = min(TILE_Q, num_tokens)
    block_pages = max(1, min(TILE_KV // page_size, block_tables.shape[1]))
    block_len = block_pages * page_size
    tables = _whole_blocks(block_tables, block_pages)
    tiles_before = jnp.cumulative_sum(_cdiv(q_lens, tile_len), include_initial=True)
    padded_q = jnp.pad(q, ((0, tile_len), (0, 0), (0, 0)))

    def tile(tile_idx: Int[Array, ""], out: Float[Array, "padded heads head_dim"]):
        slot = jnp.searchsorted(tiles_before, tile_idx, side="right", method="compare_all") - 1  # no loop
        first = (tile_idx - tiles_before[slot]) * tile_len  # of this tile, within the slot's queries
        rows = first + jnp.arange(tile_len)
        last_key = kv_lens[slot] - q_lens[slot] + jnp.minimum(rows, q_lens[slot] - 1)  # it sees itself
        start = q_starts[slot] + first
        queries = lax.dynamic_slice_in_dim(padded_q, start, tile_len)
        queries = queries.reshape(tile_len, kv_heads, -1, head_dim).swapaxes(0, 1)
        queries = queries.reshape(kv_heads, -1, head_dim)  # the group's heads of a token lie together

        def visit(block_idx: Int[Array, ""], state: _Softmax) -> _Softmax:
            pages = lax.dynamic_slice(tables, (slot, block_idx * block_pages), (1, block_pages))[0]
            tokens = block_idx * block_len + jnp.arange(block_len)
            live = tokens[None] <= jnp.repeat(last_key, num_heads // kv_heads)[:, None]
            k, v = _gather(kv_pages, pages, kv_lens[slot] - block_idx * block_len)
            scores = jnp.matmul(queries, k.swapaxes(-1, -2), preferred_element_type=jnp.float32) * scale
            return state.add(jnp.where(live, scores, NEG_INF), v)

        num_blocks = _cdiv(jnp.max(last_key) + 1, block_len)
        result = lax.fori_loop(0, num_blocks, visit, _Softmax.empty(queries)).normalised().astype(q.dtype)
        result = result.reshape(kv_heads, tile_len, -1, head_dim).swapaxes(0, 1)
        others = lax.dynamic_slice_in_dim(out, start, tile_len)  # a short tile ends before the next slot
        live_rows = (rows < q_lens[slot])[:, None, None]
        joined = jnp.where(live_rows, result.reshape(tile_len, num_heads, head_dim), others)
        return lax.dynamic_update_slice_in_dim(out, joined, start, axis=0)

    return lax.fori_loop(0, tiles_before[-1], tile, jnp.zeros_like(padded_q))[:num_tokens]


def _gather(
    kv_pages: Float[Array, "num_pages 2 kv_heads page_size head_dim"],
    pages: Int[Array, "*batch pages"],
    num_live: Int[Array, "*batch"],
) -> tuple[Float[Array, "*batch kv_heads tokens head_dim"], Float[Array, "*batch kv_heads tokens head_dim"]]:
    """Keys and values of pages, head by head; values behind the first `num_live` tokens are 0, as 0 x NaN of
    an earlier owner is NaN. Keys there may hold anything: their scores are masked."""
    _, _, kv_heads, page_size, head_dim = kv_pages.shape
    pieces = kv_pages.reshape(-1, page_size * head_dim)  # a page's keys of each head, then its values
    first = 2 * kv_heads * pages[..., None, :] + jnp.arange(kv_heads)[:, None]  # [*batch, kv_heads, pages]

    def tokens_of(gathered: jax.Array) -> jax.Array:
        return gathered.reshape(*first.shape[:-1], first.shape[-1] * page_size, head_dim)

    k, v = (pieces.at[rows].get(mode="clip") for rows in (first, first + kv_heads))
    of_page = num_live[..., None, None] - page_size * jnp.arange(first.shape[-1])  # live tokens
    live = jnp.arange(page_size * head_dim) < head_dim * of_page[..., None]
    return tokens_of(k), tokens_of(jnp.where(live, v, 0))


def _cdiv(x: Int[Array, "*n"], y: int) -> Int[Array, "*n"]:
    return (x + y - 1) // y


def _whole_blocks(block_tables: Int[Array, "slots width"], block_pages: int) -> Int[Array, "slots padded"]:
    """Tables padded with the null page to whole blocks."""
    return jnp.pad(block_tables, ((0, 0), (0, -block_tables.shape[1] % block_pages)))
