import numpy as np
import pytest

from pallas_kernels import check_block_tables

TABLES = np.array([[3, 1, 0], [0, 0, 0], [5, 2, 4]])
KV_LENS = np.array([17, 0, 48])


def check(tables=TABLES, kv_lens=KV_LENS):
    check_block_tables(tables, kv_lens, num_pages=6, page_size=16)


def test_tables_that_hold_their_sequences_pass():
    check()


@pytest.mark.parametrize(
    "slot, index, value, message",
    [
        (0, 0, 6, r"block_tables\[0, 0\]=6: must be from 1 to 5"),
        (0, 1, 0, r"block_tables\[0, 1\]=0: must be from 1 to 5"),  # the null page, where a token is
        (2, 2, -1, r"block_tables\[2, 2\]=-1: must be from 1 to 5"),
        (1, 2, 6, r"block_tables\[1, 2\]=6: must be from 0 to 5"),  # behind the end: still an address
    ],
)
def test_a_page_that_does_not_exist_is_named(slot, index, value, message):
    tables = TABLES.copy()
    tables[slot, index] = value
    with pytest.raises(ValueError, match=message):
        check(tables)


@pytest.mark.parametrize("kv_len", [-1, 49])
def test_a_length_that_the_table_cannot_hold_is_named(kv_len):
    with pytest.raises(ValueError, match=rf"kv_lens\[1\]={kv_len}: must be from 0 to what 3 pages of 16"):
        check(kv_lens=np.array([17, kv_len, 48]))


def test_shapes_must_agree(unchecked):
    with pytest.raises(ValueError, match=r"kv_lens\.shape"):
        check(kv_lens=KV_LENS[:2])
