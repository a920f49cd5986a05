"""The state that lives on the device between steps: running rows, block tables, and the KV cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jbatch.config import ModelConfig
from jbatch.plan import FLOAT_COLUMNS, NUM_SCALARS, ROW_WIDTH, RowSetup


class EngineState(NamedTuple):
    """Donated to every step, which updates it in place."""

    rows: Int[Array, "num_rows row_width"]  # columns: see RowSetup
    block_tables: Int[Array, "num_rows pages_per_seq"]
    kv_pages: tuple[Float[Array, "num_pages 2 kv_heads page_size head_dim"], ...]  # one per layer


class StateShape(NamedTuple):
    """The sizes of an EngineState."""

    num_rows: int
    num_pages: int
    page_size: int
    pages_per_seq: int

    def abstract(self, config: ModelConfig) -> Any:
        """An EngineState of shapes and dtypes, without memory."""
        page_shape = (self.num_pages, 2, config.num_kv_heads, self.page_size, config.head_dim)
        leaf: Any = jax.ShapeDtypeStruct
        return EngineState(
            rows=leaf((self.num_rows, ROW_WIDTH), jnp.int32),
            block_tables=leaf((self.num_rows, self.pages_per_seq), jnp.int32),
            kv_pages=(leaf(page_shape, config.dtype),) * config.num_layers,
        )

    def zeros(self, config: ModelConfig, device: jax.Device) -> EngineState:
        """An idle engine's state, on `device`."""
        return jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=device), self.abstract(config)
        )


def read_rows(columns: Int[Array, "slots row_width"]) -> RowSetup:
    """The columns by name: scalars as [slots] int32 or float32, stop_ids as [slots, MAX_STOP_IDS]."""
    scalars = {
        name: lax.bitcast_convert_type(columns[:, idx], jnp.float32)
        if name in FLOAT_COLUMNS
        else columns[:, idx]
        for idx, name in enumerate(RowSetup._fields[:NUM_SCALARS])
    }
    return RowSetup(**scalars, stop_ids=columns[:, NUM_SCALARS:])


def write_columns(
    columns: Int[Array, "slots row_width"], **values: Int[Array, " slots"]
) -> Int[Array, "slots row_width"]:
    """The columns with some integer ones replaced by name."""
    for name, value in values.items():
        columns = columns.at[:, RowSetup._fields.index(name)].set(value.astype(jnp.int32))
    return columns
