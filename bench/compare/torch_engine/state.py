"""The state that lives on the device between steps: jbatch/device/state.py in PyTorch.

PyTorch has no write that drops what is out of range: there is one more row and one more page than the shape
says, which take those writes and are never read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jbatch.config import ModelConfig
from jbatch.errors import ConfigError
from jbatch.seam.rows import ROW_WIDTH
from jbatch.seam.shape import StateShape


class State(NamedTuple):
    """Updated in place by every step."""

    rows: Int[Tensor, "num_rows_plus_1 row_width"]
    block_tables: Int[Tensor, "num_rows_plus_1 pages_per_seq"]
    kv_pages: tuple[Float[Tensor, "num_pages_plus_1 2 kv_heads page_size head_dim"], ...]

    @property
    def num_rows(self) -> int:
        return len(self.rows) - 1


def zeros(config: ModelConfig, shape: StateShape, device: torch.device) -> State:
    """The state of an idle engine. Raises ConfigError where it does not fit the device."""
    page_shape = (shape.num_pages + 1, 2, config.num_kv_heads, shape.page_size, config.head_dim)
    try:
        return State(
            torch.zeros((shape.num_rows + 1, ROW_WIDTH), dtype=torch.int32, device=device),
            torch.zeros((shape.num_rows + 1, shape.pages_per_seq), dtype=torch.int32, device=device),
            tuple(
                torch.zeros(page_shape, dtype=getattr(torch, config.dtype), device=device)
                for _ in range(config.num_layers)
            ),
        )
    except torch.OutOfMemoryError:
        num_bytes = (shape.num_pages + 1) * shape.page_size * config.kv_bytes_per_token
        raise ConfigError(
            "num_pages", shape.num_pages, f"out of memory: {num_bytes} bytes of KV cache do not fit"
        ) from None


def copy_pages(state: State, copies: Int[Tensor, "num_copies 2"]) -> None:
    """Copy pages, (from, to), in all layers."""
    sources, targets = copies.long().T
    for kv_pages in state.kv_pages:
        kv_pages[targets] = kv_pages[sources]


def put_tables(state: State, tables: Int[Tensor, "num_tables row_and_pages"]) -> None:
    """Put whole block tables in place, each a row and its pages."""
    state.block_tables[tables[:, 0].long()] = tables[:, 1:]
