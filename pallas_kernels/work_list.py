"""The work lists of the attention kernels, as arrays: made once per step, for all its layers.

The functions are jit-able and their results have static shapes, so that a step makes them on the device
from the lengths that only the device knows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from pallas_kernels.problem import Problem


class DecodeWork(NamedTuple):
    """A list of KV chunks of equal size: item i is chunk `chunks[i]` of slot `slots[i]`'s sequence.

    A slot's items are consecutive and in order: `first[slot]` to `first[slot + 1]`. Items from `num_items`
    on are dead.
    """

    slots: Int[Array, " max_items"]
    chunks: Int[Array, " max_items"]
    first: Int[Array, " slots_plus_1"]

    @property
    def num_items(self) -> Int[Array, ""] | np.integer:
        return self.first[-1]


class PrefillWork(NamedTuple):
    """A list of tiles of queries: tile i holds `num_tokens[i]` of slot `slots[i]`'s queries, from `starts[i]`
    in the packed axis, the first of which is token `positions[i]` of its sequence. Dead tiles hold 0 tokens.
    """

    slots: Int[Array, " num_tiles"]
    starts: Int[Array, " num_tiles"]
    positions: Int[Array, " num_tiles"]
    num_tokens: Int[Array, " num_tiles"]


def max_items(problem: Problem, chunk: int) -> int:
    """Items that a decode step can have at most whose slots see no more tokens, all together, than the pool
    holds: that is so where its live sequences share no page.

    Whoever lets them share must see to it. `make_decode_work` drops items beyond, and kernels then answer NaN
    for the slots concerned.
    """
    per_slot = -(-problem.max_len // chunk)
    pool_tokens = problem.num_pages * problem.page_size
    return min(problem.slots * per_slot, problem.slots + pool_tokens // chunk)


def make_decode_work(kv_lens: Int[Array, " slots"], *, chunk: int, max_items: int) -> DecodeWork:
    """Cut each sequence into chunks of `chunk` tokens; dead slots (`kv_lens` 0) have none."""
    counts = (kv_lens + chunk - 1) // chunk
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    items = jnp.arange(max_items, dtype=jnp.int32)
    slots = _owner(first, items)
    return DecodeWork(slots, items - first[slots], first)


def num_tiles(problem: Problem, tile_tokens: int) -> int:
    """Tiles that a prefill step can have at most: full ones, and a short one for each slot."""
    return problem.tokens // tile_tokens + min(problem.slots, problem.tokens)


def make_prefill_work(
    q_starts: Int[Array, " slots"],
    q_lens: Int[Array, " slots"],
    kv_lens: Int[Array, " slots"],
    *,
    tile_tokens: int,
    num_tiles: int,
) -> PrefillWork:
    """Cut each slot's queries into tiles of `tile_tokens`, the ones with most keys first: the last to run
    should be short."""
    counts = (q_lens + tile_tokens - 1) // tile_tokens
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    tiles = jnp.arange(num_tiles, dtype=jnp.int32)
    slots = _owner(first, tiles)
    offsets = (tiles - first[slots]) * tile_tokens
    num_tokens = jnp.where(tiles < first[-1], jnp.clip(q_lens[slots] - offsets, 0, tile_tokens), 0)
    positions = kv_lens[slots] - q_lens[slots] + offsets
    keys = jnp.where(num_tokens > 0, positions + num_tokens, 0)
    order = jnp.argsort(keys, descending=True, stable=True)
    work = PrefillWork(slots, q_starts[slots] + offsets, positions, num_tokens)
    return PrefillWork(*(field[order].astype(jnp.int32) for field in work))


def _owner(first: Int[Array, " slots_plus_1"], items: Int[Array, " n"]) -> Int[Array, " n"]:
    """The slot whose range of items holds each item; the last slot for those beyond all ranges."""
    slots = jnp.searchsorted(first, items, side="right", method="compare_all") - 1  # no loop on the device
    return jnp.clip(slots, 0, first.shape[0] - 2).astype(jnp.int32)
