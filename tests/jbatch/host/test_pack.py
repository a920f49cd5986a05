"""A plan becomes one array, and the array gives the plan back."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jbatch.host.pack import pack
from jbatch.host.plan import Chunk, Draw, PageCopy, StepPlan, TableUpdate
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, align, decode_bucket, prefill_bucket, room_of
from jbatch.seam.row_data import RowData
from jbatch.seam.rows import ROW_WIDTH, RowSetup, row_columns
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import input_size, padding, unpack

SHAPE = StateShape(num_rows=6, num_pages=1000, page_size=16, pages_per_seq=100)
PREFILL_BUCKETS = [prefill_bucket(tokens) for tokens in (8, 32, 128)]
DECODE_BUCKETS = [decode_bucket(slots) for slots in (1, 2, 4, 6)]
MIXED_BUCKETS = [Bucket(1, 8), Bucket(2, 32), Bucket(6, 128)]
SETUP = RowSetup(9, length=20, budget=4, min_left=1, seed=2**32 - 1, temperature=0.7, stop_ids=(2, 5))
NO_UPDATE = [6, 0, 0]


def packed_fields(plan, sampler=None):
    step = pack(plan, SHAPE, sampler)
    sampler = plan.sampler if sampler is None else sampler
    assert step.bucket == plan.bucket and step.sampler == sampler
    assert step.packed.dtype == np.int32
    assert step.packed.shape == (input_size(plan.bucket, SHAPE, sampler),)
    return unpack(step.packed, plan.bucket, SHAPE, sampler)


def test_a_prefill_step():
    """Two chunks in a bucket of 32: the second one starts at the next multiple of 8, and draws."""
    chunks = Chunk(8, 3, (11, 12, 13), 16), Chunk(9, 0, (21, 22), 0, draws=(Draw(9, 0, 1, SETUP),))
    updates = (TableUpdate(3, 1, 7), TableUpdate(0, 0, 4))
    fields = packed_fields(StepPlan(0, PREFILL_BUCKETS[1], chunks=chunks, table_updates=updates))
    assert fields.tokens.tolist() == [11, 12, 13, 0, 0, 0, 0, 0, 21, 22] + [0] * 22
    assert fields.chunk_rows.tolist() == [3, 0]
    assert fields.q_starts.tolist() == [0, 8]
    assert fields.q_lens.tolist() == [3, 2]
    assert fields.kv_lens.tolist() == [19, 2]
    assert fields.draw_places.tolist() == [9, 0] and fields.draw_rows.tolist() == [0, 6]
    assert fields.has_setup.tolist() == [1, 0]
    assert fields.setups[0].tolist() == row_columns(SETUP).tolist() and not fields.setups[1].any()
    room = room_of(PREFILL_BUCKETS[1], SHAPE).table_updates
    assert fields.table_updates.tolist() == [[3, 1, 7], [0, 0, 4], *[NO_UPDATE] * (room - 2)]
    assert fields.slot_rows.size == fields.frozen.size == fields.targets.size == 0


def test_a_decode_step():
    """Three rows in a bucket of 4, the second of them frozen."""
    updates, frozen = (TableUpdate(2, 3, 1),), (False, True, False)
    plan = StepPlan(0, DECODE_BUCKETS[2], (7, 8, 9), (5, 0, 2), frozen, table_updates=updates)
    fields = packed_fields(plan)
    assert fields.slot_rows.tolist() == [5, 0, 2, 6]
    assert fields.frozen.tolist() == [0, 1, 0, 0]
    assert fields.table_updates.tolist() == [[2, 3, 1], NO_UPDATE, NO_UPDATE, NO_UPDATE]
    assert fields.tokens.size == fields.chunk_rows.size == fields.draw_rows.size == 0


def test_a_mixed_step():
    """One row decodes; of the chunk behind it one row begins to draw, and another goes on as it is."""
    draws = Draw(9, 0, 2, SETUP), Draw(7, 4, 1, None)
    chunk = Chunk(9, 0, (21, 22, 23), 16, draws=draws)
    fields = packed_fields(StepPlan(0, MIXED_BUCKETS[1], (3,), (5,), chunks=(chunk,)))
    assert fields.slot_rows.tolist() == [5, 6] and fields.frozen.tolist() == [0, 0]
    assert fields.tokens.tolist() == [21, 22, 23] + [0] * 29, "places are counted from the tokens' own first"
    assert fields.chunk_rows.tolist() == [0, 6] and fields.q_starts.tolist() == [0, 32]
    assert fields.draw_places.tolist() == [2, 1] and fields.draw_rows.tolist() == [0, 4]
    assert fields.has_setup.tolist() == [1, 0] and not fields.setups[1].any()


def test_the_program_may_be_another_one():
    """What is scored goes along where the program reports it."""
    chunks = Chunk(0, 0, (4, 5, 6), 0, targets=(5, 6)), Chunk(1, 1, (7, 8), 0, targets=(-1, 9))
    plan = StepPlan(0, PREFILL_BUCKETS[1], chunks=chunks, sampler=Sampler.LOGPROBS)
    expected = [5, 6, -1, -1, -1, -1, -1, -1, -1, 9] + [-1] * 22
    assert packed_fields(plan).targets.tolist() == expected
    assert packed_fields(plan, Sampler.EXTENDED).targets.tolist() == expected
    assert packed_fields(plan, Sampler.PROCESSED).targets.size == 0


def test_what_goes_up_beside_the_packed_array():
    data, mask = (RowData("counts", np.zeros(3, np.int32)),), np.zeros((2, 4), np.int32)
    copies = PageCopy(3, 5), PageCopy(4, 6)
    step = pack(StepPlan(0, DECODE_BUCKETS[0], (0,), (0,), page_copies=copies), SHAPE, None, data, mask)
    assert step.page_copies.dtype == np.int32 and step.page_copies.tolist() == [[3, 5], [4, 6]]
    assert step.row_data is data and step.token_mask is mask
    bare = pack(StepPlan(0, DECODE_BUCKETS[0], (0,), (0,)), SHAPE)
    assert (bare.row_data, bare.page_copies, bare.tables, bare.token_mask) == ((), None, None, None)


@pytest.mark.parametrize("bucket", [DECODE_BUCKETS[1], MIXED_BUCKETS[1]], ids=str)
def test_packing_leaves_nothing_behind_for_the_next_plan(bucket):
    chunks = (Chunk(2, 2, (5, 6), 0, draws=(Draw(2, 2, 1, SETUP),), targets=(6,)),) if bucket.tokens else ()
    full = StepPlan(
        0, bucket, (0, 1), (4, 5), (True, True), chunks, (TableUpdate(4, 0, 1),), sampler=Sampler.LOGPROBS
    )
    packed_fields(full)
    fields = packed_fields(StepPlan(1, bucket, (0,), (3,), sampler=Sampler.LOGPROBS))
    assert fields.slot_rows.tolist() == [3, 6]
    expected = unpack(padding(bucket, SHAPE, Sampler.LOGPROBS), bucket, SHAPE, Sampler.LOGPROBS)
    for name, field in fields._asdict().items():
        assert name == "slot_rows" or (field == getattr(expected, name)).all(), name


# At random.

TOKEN = st.integers(0, 2**31 - 1)
SETUPS = st.builds(SETUP._replace, seed=st.integers(0, 2**32 - 1), top_p=st.floats(0, 1))
UPDATES = st.builds(TableUpdate, st.integers(0, 5), st.integers(0, 99), st.integers(1, 999))
COPIES = st.lists(st.builds(PageCopy, st.integers(1, 999), st.integers(1, 999)), max_size=5).map(tuple)


@st.composite
def plans(draw, bucket):
    """Whatever fits the bucket."""
    room = room_of(bucket, SHAPE)
    rows = draw(st.permutations(range(6)))[: draw(st.integers(0, bucket.slots))]
    some = draw(st.lists(UPDATES, min_size=1, max_size=8))
    num_updates = draw(st.integers(0, room.table_updates) | st.just(room.table_updates))
    return StepPlan(
        step_idx=0,
        bucket=bucket,
        seq_ids=tuple(range(len(rows))),
        rows=tuple(rows),
        frozen=draw(st.just(()) | st.tuples(*[st.booleans()] * len(rows))),
        chunks=draw(chunks_of(bucket, room)),
        table_updates=tuple(itertools.islice(itertools.cycle(some), num_updates)),
        page_copies=draw(COPIES),
        sampler=draw(st.sampled_from(Sampler)),
    )


@st.composite
def chunks_of(draw, bucket, room):
    """Any number of chunks, each with any number of draws, at whichever of its tokens."""
    num_chunks, draws_left = draw(st.integers(0, room.chunks)), room.chunk_draws
    chunks = []
    for idx in range(num_chunks):
        most = bucket.tokens // num_chunks // 8 * 8
        token_ids = draw(st.lists(TOKEN, min_size=1, max_size=most).map(tuple))
        target = st.integers(-1, 2**31 - 1)
        offset = st.integers(0, len(token_ids) - 1)
        one = st.builds(Draw, st.just(idx), st.integers(0, 5), offset, st.none() | SETUPS)
        draws = draw(st.lists(one, max_size=draws_left).map(tuple))
        targets = draw(st.lists(target, max_size=len(token_ids)).map(tuple))
        row, start = draw(st.integers(0, 5)), draw(st.integers(0, 2**20))
        chunks.append(Chunk(idx, row, token_ids, start, draws=draws, targets=targets))
        draws_left -= len(draws)
    return tuple(chunks)


@pytest.mark.parametrize("bucket", [*PREFILL_BUCKETS, *DECODE_BUCKETS, *MIXED_BUCKETS], ids=str)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_plan_comes_back(bucket, data):
    """What the plan says stands in its fields, and padding elsewhere."""
    plan = data.draw(plans(bucket))
    fields, room = packed_fields(plan), room_of(bucket, SHAPE)
    assert fields.slot_rows.tolist() == [*plan.rows, *[6] * (bucket.slots - len(plan.rows))]
    assert fields.frozen.tolist() == [*plan.frozen, *[0] * (bucket.slots - len(plan.frozen))]
    no_updates = [NO_UPDATE] * (room.table_updates - len(plan.table_updates))
    assert fields.table_updates.tolist() == [*map(list, plan.table_updates), *no_updates]
    copies = pack(plan, SHAPE).page_copies
    assert (copies.tolist() if plan.page_copies else copies) == ([*map(list, plan.page_copies)] or None)
    check_chunks(plan, fields, room)
    check_draws(plan, fields, room)


def check_chunks(plan, fields, room):
    bucket = plan.bucket
    tokens, targets, begin = np.zeros(bucket.tokens, np.int32), np.full(bucket.tokens, -1, np.int32), 0
    for idx, chunk in enumerate(plan.chunks):
        length = len(chunk.token_ids)
        tokens[begin : begin + length] = chunk.token_ids
        targets[begin : begin + len(chunk.targets)] = chunk.targets
        assert fields.chunk_rows[idx] == chunk.row
        assert (fields.q_starts[idx], fields.q_lens[idx]) == (begin, length)
        assert fields.kv_lens[idx] == chunk.start + length
        begin += align(length)
    num_chunks, unused = len(plan.chunks), room.chunks - len(plan.chunks)
    assert fields.tokens.tolist() == tokens.tolist()
    assert fields.targets.tolist() == (targets.tolist() if plan.sampler.reports else [])
    assert fields.chunk_rows[num_chunks:].tolist() == [6] * unused
    assert fields.q_starts[num_chunks:].tolist() == [bucket.tokens] * unused
    assert not fields.q_lens[num_chunks:].any() and not fields.kv_lens[num_chunks:].any()


def check_draws(plan, fields, room):
    expected = [
        (
            int(fields.q_starts[idx]) + draw.offset,
            draw.row,
            int(draw.setup is not None),
            [0] * ROW_WIDTH if draw.setup is None else row_columns(draw.setup).tolist(),
        )
        for idx, chunk in enumerate(plan.chunks)
        for draw in chunk.draws
    ]
    expected += [(0, 6, 0, [0] * ROW_WIDTH)] * (room.chunk_draws - len(expected))
    places, rows, has_setup, setups = (
        field.tolist() for field in (fields.draw_places, fields.draw_rows, fields.has_setup, fields.setups)
    )
    assert [*zip(places, rows, has_setup, setups, strict=True)] == expected
