"""The sizes of the state that a device keeps: one record for the host, the device, and whoever stands in."""

from __future__ import annotations

from typing import NamedTuple


class StateShape(NamedTuple):
    """How many sequences a device knows at once, and how many pages of KV cache it has for them."""

    num_rows: int  # sequences
    num_pages: int  # page 0 is nobody's
    page_size: int  # tokens
    pages_per_seq: int  # of the longest sequence

    @property
    def max_seq_len(self) -> int:
        """Tokens that a block table, and the whole pool, can hold."""
        return min(self.pages_per_seq, self.num_pages - 1) * self.page_size
