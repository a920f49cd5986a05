"""The packed input of a step: its layout, its padding, and what no step may be told."""

import numpy as np
import pytest

from jbatch.errors import JBatchError
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.rows import ROW_WIDTH
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import (
    StepFields,
    StepInput,
    check_pages,
    input_size,
    pack_tables,
    padding,
    unpack,
)

SHAPE = StateShape(num_rows=6, num_pages=20, page_size=16, pages_per_seq=5)
BUCKETS = [decode_bucket(4), prefill_bucket(32), Bucket(4, 32)]


def shapes(slots, tokens, chunks, updates, targets):
    """Of the fields, in their order."""
    return [
        *[(slots,)] * 2, (tokens,), *[(chunks,)] * 7, (chunks, ROW_WIDTH), (updates, 3), (targets,),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bucket", "sampler", "expected"),
    [
        (Bucket(4, 0), Sampler.GREEDY, shapes(4, 0, 0, 4, 0)),
        (Bucket(4, 0), Sampler.EXTENDED, shapes(4, 0, 0, 4, 0)),
        (Bucket(0, 32), Sampler.PROCESSED, shapes(0, 32, 2, 2 + 2 + 512, 0)),
        (Bucket(0, 32), Sampler.LOGPROBS, shapes(0, 32, 2, 2 + 2 + 512, 32)),
        (Bucket(4, 32), Sampler.EXTENDED, shapes(4, 32, 2, 4 + 2 + 2 + 512, 32)),
    ],
)
def test_the_fields_fill_the_array_one_behind_the_other(bucket, sampler, expected):
    """Targets are there where the step reports."""
    size = input_size(bucket, SHAPE, sampler)
    fields = unpack(np.arange(size), bucket, SHAPE, sampler)
    assert [field.shape for field in fields] == expected
    assert np.concatenate([field.reshape(-1) for field in fields]).tolist() == list(range(size))


def test_fields_of_a_numpy_array_are_views():
    packed = padding(BUCKETS[2], SHAPE, Sampler.GREEDY).copy()
    for field in unpack(packed, BUCKETS[2], SHAPE, Sampler.GREEDY):
        field[...] = 7
    assert (packed == 7).all()


@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
@pytest.mark.parametrize("sampler", [Sampler.PLAIN, Sampler.LOGPROBS])
def test_padding_names_no_row_no_page_and_no_token(bucket, sampler):
    packed = padding(bucket, SHAPE, sampler)
    assert packed.dtype == np.int32
    fields = unpack(packed, bucket, SHAPE, sampler)
    expected = dict.fromkeys(StepFields._fields, 0)
    expected |= dict.fromkeys(("slot_rows", "chunk_rows", "draw_rows"), 6)
    expected |= {"q_starts": bucket.tokens, "targets": -1, "table_updates": [6, 0, 0]}
    for name, field in fields._asdict().items():
        assert (field == expected[name]).all(), name


def test_padding_is_shared():
    bucket = BUCKETS[1]
    assert padding(bucket, SHAPE, Sampler.GREEDY) is padding(bucket, SHAPE, Sampler.PROCESSED)
    assert padding(bucket, SHAPE, Sampler.GREEDY) is not padding(bucket, SHAPE, Sampler.LOGPROBS)


# Pages.


def step_with(updates=(), copies=None, bucket=BUCKETS[0]):
    packed = padding(bucket, SHAPE, Sampler.GREEDY).copy()
    table_updates = unpack(packed, bucket, SHAPE, Sampler.GREEDY).table_updates
    for idx, update in enumerate(updates):
        table_updates[idx] = update
    return StepInput(bucket, Sampler.GREEDY, packed, (), copies)


@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
def test_pages_that_exist(bucket):
    check_pages(step_with(bucket=bucket), SHAPE)
    check_pages(step_with([[0, 0, 1], [5, 4, 19]], np.array([[1, 19], [18, 2], [1, 3]]), bucket), SHAPE)
    check_pages(step_with(copies=np.zeros((0, 2), np.int32), bucket=bucket), SHAPE)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ([-1, 0, 1], "table update with row=-1: must be from 0 to 5"),
        ([7, 0, 1], "table update with row=7: must be from 0 to 5"),  # 6 is padding
        ([0, -1, 1], "table update with index=-1: must be from 0 to 4"),
        ([0, 5, 1], "table update with index=5: must be from 0 to 4"),
        ([0, 0, 0], "table update with page=0: must be from 1 to 19"),  # nobody's
        ([0, 0, 20], "table update with page=20: must be from 1 to 19"),
    ],
)
@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
def test_a_place_in_a_block_table_that_does_not_exist(update, message, bucket):
    with pytest.raises(JBatchError, match=f"^{message}$"):
        check_pages(step_with([[0, 0, 1], update], bucket=bucket), SHAPE)


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        ([0, 3], "page copy with from=0: must be from 1 to 19"),
        ([20, 3], "page copy with from=20: must be from 1 to 19"),
        ([3, 0], "page copy with to=0: must be from 1 to 19"),
        ([3, 20], "page copy with to=20: must be from 1 to 19"),
    ],
)
def test_a_copy_of_a_page_that_does_not_exist(copy, message):
    with pytest.raises(JBatchError, match=f"^{message}$"):
        check_pages(step_with(copies=np.array([[1, 2], copy])), SHAPE)


def test_whole_block_tables():
    """The null page stands behind a table's own."""
    tables = pack_tables([(5, (19, 1)), (0, ())], SHAPE)
    assert tables.tolist() == [[5, 19, 1, 0, 0, 0], [0] * 6]
    check_pages(step_with()._replace(tables=tables), SHAPE)
    check_pages(step_with()._replace(tables=pack_tables([], SHAPE)), SHAPE)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((6, (1,)), "block table with row=6: must be from 0 to 5"),
        ((-1, (1,)), "block table with row=-1: must be from 0 to 5"),
        ((1, (3, 20)), "block table with page=20: must be from 0 to 19"),
        ((1, (-1,)), "block table with page=-1: must be from 0 to 19"),
        ((2, (5,)), "block table with row=2: it has two in one step"),
    ],
)
def test_a_block_table_that_cannot_be(table, message):
    step = step_with()._replace(tables=pack_tables([(2, (4,)), table], SHAPE))
    with pytest.raises(JBatchError, match=f"^{message}$"):
        check_pages(step, SHAPE)


def test_an_array_of_another_size_is_left_to_the_program_to_refuse():
    step = step_with([[0, 0, 99]])
    check_pages(step._replace(packed=step.packed[:-1]), SHAPE)
    check_pages(step._replace(bucket=BUCKETS[1]), SHAPE)
