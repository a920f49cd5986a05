"""A plan becomes one array, and the array gives the plan back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jbatch.host.plan import (
    FLOAT_COLUMNS,
    NUM_SCALARS,
    ROW_WIDTH,
    Bucket,
    Chunk,
    RowSetup,
    StepPlan,
    TableUpdate,
    align,
    input_size,
    pack,
    row_columns,
    row_setup,
    unpack,
    unpack_output,
)
from jbatch.host.request import Sequence
from tests.helpers.schedules import request

NUM_ROWS, PAGE_SIZE = 6, 16
PREFILL_BUCKETS = [Bucket("prefill", *size) for size in ((1, 8), (2, 32), (4, 128))]
DECODE_BUCKETS = [Bucket("decode", n, n) for n in (1, 2, 4, 6)]
SETUP = RowSetup(9, length=20, budget=4, min_left=1, seed=2**32 - 1, temperature=0.7, stop_ids=(2, 5))


def packed_fields(plan):
    step = pack(plan, NUM_ROWS, PAGE_SIZE)
    assert step.bucket == plan.bucket and step.sampler == plan.sampler
    assert step.packed.dtype == np.int32 and step.packed.shape == (input_size(plan.bucket, PAGE_SIZE),)
    return unpack(step.packed, plan.bucket, PAGE_SIZE)


def test_a_prefill_step():
    """Two chunks in a bucket of (2, 32): the second one starts at the next multiple of 8, and samples."""
    chunks = (Chunk((11, 12, 13), 16, 0, None), Chunk((21, 22), 0, 0, SETUP))
    updates = (TableUpdate(3, 1, 7), TableUpdate(0, 0, 4))
    fields = packed_fields(StepPlan(0, PREFILL_BUCKETS[1], (8, 9), (3, 0), updates, chunks))
    assert fields.tokens.tolist() == [11, 12, 13, 0, 0, 0, 0, 0, 21, 22] + [0] * 22
    assert fields.rows.tolist() == [3, 0]
    assert fields.q_starts.tolist() == [0, 8]
    assert fields.q_lens.tolist() == [3, 2]
    assert fields.kv_lens.tolist() == [19, 2]
    assert fields.samples.tolist() == [0, 1]
    assert fields.setup[1].tolist() == row_columns(SETUP).tolist() and not fields.setup[0].any()
    assert fields.table_updates.tolist() == [[3, 1, 7], [0, 0, 4], [6, 0, 0], [6, 0, 0]]


def test_a_decode_step():
    """Three rows in a bucket of 4, the second of them frozen."""
    updates, frozen = (TableUpdate(2, 3, 1),), (False, True, False)
    fields = packed_fields(StepPlan(0, DECODE_BUCKETS[2], (7, 8, 9), (5, 0, 2), updates, (), frozen))
    assert fields.rows.tolist() == [5, 0, 2, 6]
    assert fields.frozen.tolist() == [0, 1, 0, 0]
    assert fields.table_updates.tolist() == [[2, 3, 1], [6, 0, 0], [6, 0, 0], [6, 0, 0]]


def test_packing_leaves_nothing_behind_for_the_next_plan():
    full = StepPlan(0, DECODE_BUCKETS[1], (0, 1), (4, 5), (TableUpdate(4, 0, 1),), (), (True, True))
    packed_fields(full)
    fields = packed_fields(StepPlan(1, DECODE_BUCKETS[1], (0,), (3,), ()))
    assert fields.rows.tolist() == [3, 6] and not fields.frozen.any()
    assert fields.table_updates.tolist() == [[6, 0, 0], [6, 0, 0]]


@st.composite
def plans(draw, bucket):
    """Whatever fits the bucket."""
    rows = tuple(draw(st.permutations(range(NUM_ROWS)))[: draw(st.integers(1, bucket.slots))])
    chunks, frozen = (), ()
    if bucket.kind == "prefill":
        share = bucket.tokens // len(rows) // 8 * 8
        token_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=share).map(tuple)
        setup = st.builds(SETUP._replace, seed=st.integers(0, 2**32 - 1), top_p=st.floats(0, 1))
        chunk = st.builds(Chunk, token_ids, st.integers(0, 2**20), st.just(0), st.none() | setup)
        chunks = draw(st.tuples(*[chunk] * len(rows)))
    else:
        frozen = draw(st.tuples(*[st.booleans()] * len(rows)))
    update = st.builds(TableUpdate, st.sampled_from(rows), st.integers(0, 99), st.integers(1, 999))
    updates = draw(st.lists(update, max_size=max_updates(bucket)).map(tuple))
    return StepPlan(0, bucket, tuple(range(len(rows))), rows, updates, chunks, frozen, draw(st.booleans()))


def max_updates(bucket):
    return bucket.slots + (bucket.tokens // PAGE_SIZE if bucket.kind == "prefill" else 0)


@pytest.mark.parametrize("bucket", [*PREFILL_BUCKETS, *DECODE_BUCKETS], ids=str)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_plan_comes_back(bucket, data):
    """What the plan says stands in its fields, and padding elsewhere."""
    plan = data.draw(plans(bucket))
    fields, padding = packed_fields(plan), bucket.slots - len(plan.rows)
    assert fields.rows.tolist() == [*plan.rows, *[NUM_ROWS] * padding]
    no_updates = [[NUM_ROWS, 0, 0]] * (max_updates(bucket) - len(plan.table_updates))
    assert fields.table_updates.tolist() == [*map(list, plan.table_updates), *no_updates]
    if bucket.kind == "decode":
        assert fields.frozen.tolist() == [*plan.frozen, *[0] * padding]
        return
    tokens, begin = np.zeros(bucket.tokens, np.int32), 0
    for slot, chunk in enumerate(plan.chunks):
        length = len(chunk.token_ids)
        tokens[begin : begin + length] = chunk.token_ids
        assert (fields.q_starts[slot], fields.q_lens[slot]) == (begin, length)
        assert fields.kv_lens[slot] == chunk.start + length
        assert fields.samples[slot] == (chunk.setup is not None)
        assert (fields.setup[slot] == (row_columns(chunk.setup) if chunk.setup else 0)).all()
        begin += align(length)
    assert fields.tokens.tolist() == tokens.tolist()
    assert fields.q_starts[len(plan.rows) :].tolist() == [bucket.tokens] * padding
    for field in (fields.q_lens, fields.kv_lens, fields.samples, fields.setup):
        assert not field[len(plan.rows) :].any()


def test_a_row_keeps_its_floats_bit_by_bit():
    setup = SETUP._replace(temperature=0.1, top_p=1 / 3, min_p=1e-30)
    columns = row_columns(setup)
    assert columns.dtype == np.int32 and columns.shape == (ROW_WIDTH,)
    by_name = dict(zip(RowSetup._fields, columns, strict=False))
    for name in FLOAT_COLUMNS:
        assert by_name[name].view(np.float32) == np.float32(getattr(setup, name))
    assert by_name["temperature"] == 0x3DCCCCCD
    assert by_name["seed"] == -1 and by_name["seed"].view(np.uint32) == 2**32 - 1
    assert [by_name[name] for name in ("last_token", "length", "budget", "min_left")] == [9, 20, 4, 1]
    assert columns[NUM_SCALARS:].tolist() == [2, 5, *[-1] * 14]


def test_a_row_has_room_for_all_stop_ids():
    assert row_columns(RowSetup(stop_ids=tuple(range(16))))[NUM_SCALARS:].tolist() == list(range(16))


def test_row_setup_of_a_new_and_of_a_preempted_sequence():
    asked = request([5, 6, 7], 10, stop_ids=(2,), min_tokens=3, temperature=0.5, seed=77)
    sequence = Sequence(seq_id=0, request=asked, token_ids=[5, 6, 7], num_planned=3)
    expected = RowSetup(
        length=3, budget=10, min_left=3, seed=77, temperature=0.5, prompt_len=3, stop_ids=(2,)
    )
    assert row_setup(sequence) == expected
    sequence.token_ids += [8, 9]
    assert row_setup(sequence) == expected._replace(length=5, budget=8, min_left=1)
    sequence.token_ids += [8, 9]
    assert row_setup(sequence) == expected._replace(length=7, budget=6, min_left=0)


def test_row_setup_resolves_what_means_off():
    tiny = Sequence(seq_id=0, request=request([1], 1, temperature=1e-6), token_ids=[1], num_planned=1)
    assert row_setup(tiny).temperature == 0.0
    assert row_setup(tiny).top_k == 0


@pytest.mark.parametrize("top_p", [1e-39, 1e-300])
def test_a_top_p_that_float32_cannot_hold_stays_above_zero(top_p):
    asked = Sequence(seq_id=0, request=request([1], 1, top_p=top_p), token_ids=[1], num_planned=1)
    assert row_setup(asked).top_p == np.finfo(np.float32).tiny


@pytest.mark.parametrize("num_tokens, places", [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_align(num_tokens, places):
    assert align(num_tokens) == places


def test_unpack_output():
    output = unpack_output(np.array([[41, 1, 0], [0, 0, 2]], np.int32))
    assert output.tokens.tolist() == [[41], [0]]
    assert output.num_tokens.tolist() == [1, 0]
    assert output.status.tolist() == [0, 2]
