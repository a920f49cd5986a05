"""Checks of values, on the host: inside a compiled program a bad page id is clamped, and answers rubbish."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def check_block_tables(
    block_tables: Int[np.ndarray, "slots pages_per_seq"],
    kv_lens: Int[np.ndarray, " slots"],
    *,
    num_pages: int,
    page_size: int,
) -> None:
    """Raise ValueError unless every table holds pages for its sequence, naming the slot, the value and the
    limit. Page 0 is the null page: it stands behind a sequence's end, and holds nothing."""
    block_tables, kv_lens = np.asarray(block_tables), np.asarray(kv_lens)
    slots, pages_per_seq = block_tables.shape
    if kv_lens.shape != (slots,):
        raise ValueError(f"kv_lens.shape={kv_lens.shape}: must be [slots] = ({slots},)")
    for slot in np.flatnonzero((kv_lens < 0) | (kv_lens > pages_per_seq * page_size)):
        limit = f"{pages_per_seq} pages of {page_size} tokens"
        raise ValueError(f"kv_lens[{slot}]={kv_lens[slot]}: must be from 0 to what {limit} hold")
    used = np.arange(pages_per_seq) < -(-kv_lens // page_size)[:, None]
    low = np.where(used, 1, 0)
    for slot, index in np.argwhere((block_tables < low) | (block_tables >= num_pages)):
        value, least = block_tables[slot, index], low[slot, index]
        raise ValueError(f"block_tables[{slot}, {index}]={value}: must be from {least} to {num_pages - 1}")
