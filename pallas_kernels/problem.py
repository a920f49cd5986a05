"""The static side of a call: what an implementation is chosen, checked and tuned by."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["decode", "prefill", "rotate"]

PAGE_SIZES = (16, 32, 64, 128)
TOKEN_ALIGN = 8  # every slot's queries start at a multiple of this in the packed axis


class Problem(NamedTuple):
    """Shapes and dtype of what an op computes; hashable."""

    kind: Kind
    dtype: str  # of q and the cache, e.g. "bfloat16"
    tokens: int  # of the packed axis; in decode and rotate, as many as slots
    slots: int
    num_heads: int
    kv_heads: int
    head_dim: int
    num_pages: int
    page_size: int
    pages_per_seq: int

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.kv_heads

    @property
    def max_len(self) -> int:
        """Tokens that a block table can hold."""
        return self.pages_per_seq * self.page_size
