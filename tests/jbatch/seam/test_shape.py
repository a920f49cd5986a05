"""The sizes of a device's state."""

import pytest

from jbatch.seam.shape import StateShape


@pytest.mark.parametrize(
    ("num_pages", "pages_per_seq", "tokens"), [(17, 8, 128), (9, 8, 128), (8, 8, 112), (2, 8, 16)]
)
def test_a_sequence_is_bounded_by_its_block_table_and_by_the_whole_pool(num_pages, pages_per_seq, tokens):
    """Page 0 is nobody's."""
    assert StateShape(4, num_pages, 16, pages_per_seq).max_seq_len == tokens
