"""The shape of a compiled step, and what a step of that shape has room for."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

from jbatch.config import TOKEN_ALIGN, EngineConfig
from jbatch.seam.shape import StateShape

TOKENS_PER_CHUNK = 16  # of a step's tokens, for one chunk: shorter ones fill a step by their number
MAX_CHUNKS = 64  # of one step: bounds its [draws, vocab] logits
PREFIX_PAGES = 512  # pages that sequences may bring along, beyond those that their tokens fill


class Bucket(NamedTuple):
    """The shape of a compiled step.

    Its packed token axis holds `slots` decoding sequences, one token each, and `tokens` places behind them,
    for chunks of prompts. One of the two may be 0. `steps` decode steps run in one dispatch.
    """

    slots: int
    tokens: int
    steps: int = 1

    @property
    def num_places(self) -> int:
        """The length of the packed token axis."""
        return self.slots + self.tokens


class Room(NamedTuple):
    """How much a step takes beyond its slots and tokens: shapes of its input and output, too."""

    chunks: int
    chunk_draws: int  # every slot draws besides
    table_updates: int


@functools.cache
def room_of(bucket: Bucket, shape: StateShape) -> Room:
    """The rule: a chunk for each 16 tokens, at most 64 and no more than there are rows, and as many draws.

    Table updates: a page for each slot and step, the pages that the tokens fill, one that each chunk begins,
    and 512 pages that were filled before.
    """
    page_updates = bucket.slots * bucket.steps
    if not bucket.tokens:
        return Room(0, 0, page_updates)
    chunks = max(1, min(shape.num_rows, MAX_CHUNKS, bucket.tokens // TOKENS_PER_CHUNK))
    return Room(chunks, chunks, page_updates + bucket.tokens // shape.page_size + chunks + PREFIX_PAGES)


def decode_bucket(slots: int) -> Bucket:
    """Decoding sequences alone."""
    return Bucket(slots, 0)


def prefill_bucket(tokens: int) -> Bucket:
    """Chunks of prompts alone."""
    return Bucket(0, tokens)


def smallest_bucket(
    buckets: Iterable[Bucket],
    shape: StateShape,
    *,
    slots: int,
    tokens: int,
    chunks: int,
    draws: int,
    updates: int,
    steps: int = 1,
) -> Bucket:
    """The first of `buckets` that holds this much, and decodes `steps` times. `draws` are those of chunks.

    Raises:
      ValueError: where none does.
    """
    for bucket in buckets:
        if bucket.slots >= slots and bucket.tokens >= tokens and bucket.steps == steps:
            room = room_of(bucket, shape)
            if room.chunks >= chunks and room.chunk_draws >= draws and room.table_updates >= updates:
                return bucket
    raise ValueError(
        f"no step holds {slots} slots, {tokens} tokens, {chunks} chunks, {draws} draws, {updates} updates"
    )


def align(num_tokens: int) -> int:
    """Places that a chunk takes in the packed token axis."""
    return -(-num_tokens // TOKEN_ALIGN) * TOKEN_ALIGN


def buckets_of(config: EngineConfig, max_model_len: int) -> tuple[Bucket, ...]:
    """The shapes of an engine's steps, by their number of places.

    Where prompts join running sequences, steps with prompts hold decoding sequences, too: as many as run at
    most, so that their number is that of the token buckets. With a single decode bucket and a single token
    bucket every step has the one shape that holds both, so that a token's bits depend on its request alone.
    Static batches prefill, and then decode.
    """
    slots, tokens = config.decode_sizes(), config.token_sizes(max_model_len)
    mixed = config.mode == "continuous"
    with_prompts = [Bucket(slots[-1], size) if mixed else prefill_bucket(size) for size in tokens]
    if mixed and len(slots) == len(tokens) == 1 == config.num_decode_steps:
        return tuple(with_prompts)
    decode = [Bucket(size, 0, steps) for size in slots for steps in sorted({1, config.num_decode_steps})]
    return tuple(sorted([*with_prompts, *decode], key=lambda bucket: bucket.num_places))
