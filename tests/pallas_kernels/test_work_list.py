"""Work lists: every part of every sequence exactly once, within the bounds, in an order that balances."""

import functools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import work_list
from pallas_kernels.problem import PAGE_SIZES, TOKEN_ALIGN, Problem

SLOTS = 5
CHUNKS = (16, 64, 96)
TILES = (1, 8, 42, 64)

quickly = settings(max_examples=150, deadline=None)


@functools.cache
def jitted(function, **static):
    """One program for all lengths."""
    return jax.jit(functools.partial(function, **static))


def decode_work(kv_lens, chunk, max_items):
    work = jitted(work_list.make_decode_work, chunk=chunk, max_items=max_items)(np.asarray(kv_lens, np.int32))
    return work_list.DecodeWork(*map(np.asarray, work))


def prefill_work(q_starts, q_lens, kv_lens, tile_tokens, num_tiles):
    ragged = (np.asarray(x, np.int32) for x in (q_starts, q_lens, kv_lens))
    work = jitted(work_list.make_prefill_work, tile_tokens=tile_tokens, num_tiles=num_tiles)(*ragged)
    return work_list.PrefillWork(*map(np.asarray, work))


def problem(kind, *, tokens, num_pages, page_size, pages_per_seq):
    return Problem(kind, "bfloat16", tokens, SLOTS, 8, 2, 64, num_pages, page_size, pages_per_seq)


lengths = st.lists(st.one_of(st.just(0), st.integers(1, 400)), min_size=SLOTS, max_size=SLOTS)


@st.composite
def pools(draw):
    """A decode problem, and lengths of sequences that share no page of its pool; or that share some, and are
    no longer than the pool, all together."""
    page_size, pages_per_seq = draw(st.sampled_from(PAGE_SIZES)), draw(st.sampled_from([1, 3, 8]))
    if draw(st.booleans()):
        longest = pages_per_seq * page_size
        kv_lens = draw(st.lists(st.integers(0, longest), min_size=SLOTS, max_size=SLOTS))
        num_pages = max(1 + pages_per_seq, -(-sum(kv_lens) // page_size))
    else:
        counts = draw(st.lists(st.integers(0, pages_per_seq), min_size=SLOTS, max_size=SLOTS))
        num_pages = 1 + sum(counts) + draw(st.sampled_from([0, 1, 40]))  # page 0 is the null page
        kv_lens = [draw(st.integers(max(0, (n - 1) * page_size + 1), n * page_size)) for n in counts]
    sizes = dict(tokens=SLOTS, num_pages=num_pages, page_size=page_size, pages_per_seq=pages_per_seq)
    return problem("decode", **sizes), kv_lens


@st.composite
def packed_queries(draw):
    """(q_starts, q_lens, kv_lens, tokens) of slots in any order, with gaps."""
    q_lens = draw(st.lists(st.one_of(st.just(0), st.integers(1, 150)), min_size=SLOTS, max_size=SLOTS))
    cached = draw(st.lists(st.integers(0, 300), min_size=SLOTS, max_size=SLOTS))
    kv_lens = [q + before if q else 0 for q, before in zip(q_lens, cached, strict=True)]
    starts, tokens = [0] * SLOTS, 0
    for slot in draw(st.permutations(range(SLOTS))):
        tokens += TOKEN_ALIGN * draw(st.integers(0, 1))
        starts[slot] = tokens
        tokens += -(-q_lens[slot] // TOKEN_ALIGN) * TOKEN_ALIGN
    return starts, q_lens, kv_lens, max(tokens, TOKEN_ALIGN)


@quickly
@given(kv_lens=lengths, chunk=st.sampled_from(CHUNKS), max_items=st.sampled_from([1, 4, 130]))
def test_decode_items_are_each_sequences_chunks_in_order(kv_lens, chunk, max_items):
    work = decode_work(kv_lens, chunk, max_items)
    wanted = [(slot, i) for slot, n in enumerate(kv_lens) for i in range(-(-n // chunk))]
    assert work.num_items == work.first[-1] == len(wanted)  # also where the list is too short for them
    live = min(len(wanted), max_items)
    assert list(zip(work.slots[:live], work.chunks[:live], strict=True)) == wanted[:live]
    for slot in range(SLOTS):
        begin, end = work.first[slot : slot + 2]
        assert wanted[begin:end] == [(slot, i) for i in range(end - begin)]


@quickly
@given(kv_lens=lengths, chunk=st.sampled_from(CHUNKS))
def test_dead_decode_items_name_a_slot_that_exists(kv_lens, chunk):
    work = decode_work(kv_lens, chunk, 130)
    assert ((work.slots >= 0) & (work.slots < SLOTS) & (work.chunks >= 0)).all()


@quickly
@given(pool=pools(), chunk=st.sampled_from(CHUNKS))
def test_the_bound_of_decode_items_holds_and_is_no_larger_than_needed(pool, chunk):
    static, kv_lens = pool
    num_items = sum(-(-n // chunk) for n in kv_lens)
    assert num_items <= work_list.max_items(static, chunk)
    assert work_list.max_items(static, chunk) <= SLOTS * -(-static.max_len // chunk)


def test_the_bound_of_decode_items_is_reached():
    full = problem("decode", tokens=SLOTS, num_pages=1 + 4 * SLOTS, page_size=16, pages_per_seq=4)
    assert work_list.max_items(full, 64) == SLOTS == int(decode_work([64] * SLOTS, 64, 9).num_items)


@quickly
@given(packed=packed_queries(), tile_tokens=st.sampled_from(TILES))
def test_prefill_tiles_hold_each_query_once(packed, tile_tokens):
    q_starts, q_lens, kv_lens, tokens = packed
    num_tiles = 5 + sum(q_lens) // tile_tokens  # rounded, so that few programs are compiled
    work = prefill_work(q_starts, q_lens, kv_lens, tile_tokens, -(-num_tiles // 64) * 64)
    seen = np.zeros(tokens + tile_tokens, int)
    for slot, start, position, count in zip(*work, strict=True):
        if count == 0:
            continue
        assert 0 < count <= tile_tokens
        offset = start - q_starts[slot]
        assert offset % tile_tokens == 0 and offset + count <= q_lens[slot]
        assert count == min(tile_tokens, q_lens[slot] - offset)  # only a slot's last tile is short
        assert position == kv_lens[slot] - q_lens[slot] + offset
        seen[start : start + count] += 1
    wanted = np.zeros_like(seen)
    for start, length in zip(q_starts, q_lens, strict=True):
        wanted[start : start + length] = 1
    np.testing.assert_array_equal(seen, wanted)


@quickly
@given(packed=packed_queries(), tile_tokens=st.sampled_from(TILES))
def test_prefill_tiles_come_longest_first_and_dead_ones_last(packed, tile_tokens):
    q_starts, q_lens, kv_lens, _ = packed
    num_tiles = -(-(5 + sum(q_lens) // tile_tokens) // 64) * 64
    work = prefill_work(q_starts, q_lens, kv_lens, tile_tokens, num_tiles)
    live = work.num_tokens > 0
    num_live = sum(-(-n // tile_tokens) for n in q_lens)
    assert live[:num_live].all() and not live[num_live:].any()
    keys = (work.positions + work.num_tokens)[live]
    assert (np.diff(keys) <= 0).all()
    assert ((work.slots >= 0) & (work.slots < SLOTS)).all()


@quickly
@given(packed=packed_queries(), tile_tokens=st.sampled_from(TILES))
def test_the_bound_of_prefill_tiles_holds(packed, tile_tokens):
    _, q_lens, _, tokens = packed
    static = problem("prefill", tokens=tokens, num_pages=100, page_size=16, pages_per_seq=30)
    assert sum(-(-n // tile_tokens) for n in q_lens) <= work_list.num_tiles(static, tile_tokens)
