"""The shapes of compiled steps, and what a step of each has room for."""

import pytest

from jbatch.config import EngineConfig
from jbatch.seam.bucket import (
    Bucket,
    Room,
    align,
    buckets_of,
    decode_bucket,
    prefill_bucket,
    room_of,
    smallest_bucket,
)
from jbatch.seam.shape import StateShape


def shape_of(num_rows=8, page_size=16):
    return StateShape(num_rows, num_pages=100, page_size=page_size, pages_per_seq=10)


def test_what_a_bucket_holds():
    assert decode_bucket(4) == (4, 0, 1) and prefill_bucket(64) == (0, 64, 1)
    assert [bucket.num_places for bucket in (Bucket(4, 0, 3), Bucket(0, 64), Bucket(4, 64))] == [4, 64, 68]


@pytest.mark.parametrize(
    ("bucket", "num_rows", "page_size", "chunks", "updates"),
    [
        # Decoding sequences alone: none begins, and each may need a page in each of its steps.
        (Bucket(1, 0), 8, 16, 0, 1),
        (Bucket(8, 0), 8, 16, 0, 8),
        (Bucket(8, 0, 4), 8, 16, 0, 32),
        # A chunk for each 16 tokens; the pages they fill, one that each begins, and 512.
        (Bucket(0, 8), 8, 16, 1, 0 + 1 + 512),
        (Bucket(0, 16), 8, 16, 1, 1 + 1 + 512),
        (Bucket(0, 31), 8, 16, 1, 1 + 1 + 512),
        (Bucket(0, 32), 8, 16, 2, 2 + 2 + 512),
        (Bucket(0, 128), 8, 16, 8, 8 + 8 + 512),
        (Bucket(0, 128), 8, 64, 8, 2 + 8 + 512),
        (Bucket(0, 256), 8, 16, 8, 16 + 8 + 512),  # no more than rows
        (Bucket(0, 64), 1, 16, 1, 4 + 1 + 512),
        (Bucket(0, 1008), 999, 16, 63, 63 + 63 + 512),
        (Bucket(0, 1024), 999, 16, 64, 64 + 64 + 512),
        (Bucket(0, 2**20), 999, 16, 64, 2**16 + 64 + 512),  # at most 64
        # Both: the sum.
        (Bucket(4, 64), 8, 16, 4, 4 + 4 + 4 + 512),
        (Bucket(4, 64, 3), 8, 16, 4, 12 + 4 + 4 + 512),
    ],
)
def test_the_rule(bucket, num_rows, page_size, chunks, updates):
    """As many draws of chunks as chunks."""
    assert room_of(bucket, shape_of(num_rows, page_size)) == Room(chunks, chunks, updates)


BUCKETS = (
    *map(decode_bucket, (1, 2, 4)),
    prefill_bucket(32),
    Bucket(4, 32),
    prefill_bucket(64),
    Bucket(4, 64),
)


@pytest.mark.parametrize(
    ("needed", "bucket"),
    [
        ({"slots": 1}, (1, 0)),
        ({"slots": 3, "updates": 3}, (4, 0)),
        ({"slots": 1, "updates": 2}, (2, 0)),  # room for what comes with it
        ({"tokens": 8, "chunks": 1}, (0, 32)),
        ({"tokens": 32, "chunks": 2, "updates": 516}, (0, 32)),
        ({"slots": 4, "updates": 5}, (4, 32)),  # too many for a step without prompts
        ({"tokens": 33, "chunks": 1}, (0, 64)),
        ({"tokens": 24, "chunks": 3}, (0, 64)),
        ({"tokens": 8, "chunks": 1, "draws": 3}, (0, 64)),
        ({"tokens": 8, "chunks": 1, "updates": 517}, (4, 32)),
        ({"slots": 1, "tokens": 8, "chunks": 1}, (4, 32)),
        ({"slots": 1, "tokens": 8, "chunks": 3}, (4, 64)),
    ],
)
def test_the_first_that_holds_it(needed, bucket):
    sizes = {"slots": 0, "tokens": 0, "chunks": 0, "draws": 0, "updates": 0, **needed}
    assert smallest_bucket(BUCKETS, shape_of(), **sizes) == Bucket(*bucket)


@pytest.mark.parametrize(
    "needed",
    [
        {"slots": 5},
        {"slots": 4, "updates": 525},
        {"tokens": 72, "chunks": 1},
        {"tokens": 64, "chunks": 5},
        {"tokens": 64, "chunks": 1, "draws": 5},
        {"tokens": 64, "chunks": 4, "updates": 525},
        {"slots": 5, "tokens": 8, "chunks": 1},
    ],
)
def test_a_step_that_is_too_large_names_its_sizes(needed):
    sizes = {"slots": 0, "tokens": 0, "chunks": 0, "draws": 0, "updates": 0, **needed}
    words = ", ".join(f"{size} {name}" for name, size in sizes.items())
    with pytest.raises(ValueError, match=f"^no step holds {words}$"):
        smallest_bucket(BUCKETS, shape_of(), **sizes)


def test_a_step_of_both_needs_a_bucket_of_both():
    with pytest.raises(ValueError, match="no step holds 1 slots, 8 tokens"):
        smallest_bucket(BUCKETS[:4], shape_of(), slots=1, tokens=8, chunks=1, draws=0, updates=0)


@pytest.mark.parametrize("num_tokens, places", [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_align(num_tokens, places):
    assert align(num_tokens) == places


@pytest.mark.parametrize(
    "mode, slots", [("continuous", 4), ("static", 0), ("static-padded", 0), ("unbatched", 0)]
)
def test_the_buckets_of_an_engine(mode, slots):
    """Prompts join what decodes, with room for all that run; static batches prefill alone."""
    config = EngineConfig(mode=mode, max_num_seqs=4, decode_buckets=(4, 1), token_buckets=(64, 8))
    assert buckets_of(config, 100) == ((1, 0, 1), (4, 0, 1), (slots, 8, 1), (slots, 64, 1))
    default = EngineConfig(mode=mode, max_num_seqs=4, max_num_batched_tokens=128)
    with_prompts = [Bucket(slots, tokens) for tokens in default.token_sizes(100)]
    assert buckets_of(default, 100) == (*map(decode_bucket, default.decode_sizes()), *with_prompts)


def test_one_decode_and_one_token_bucket_make_a_single_shape():
    sizes = {"max_num_seqs": 4, "decode_buckets": (4,), "token_buckets": (64,)}
    assert buckets_of(EngineConfig(**sizes), 100) == (Bucket(4, 64),)
    assert buckets_of(EngineConfig(mode="static", **sizes), 100) == (decode_bucket(4), prefill_bucket(64))
