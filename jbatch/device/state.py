"""The state that lives on the device between steps: running rows, block tables, and the KV cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num, Shaped

from jbatch.config import ModelConfig
from jbatch.device.settings import fixed_settings
from jbatch.seam.rows import COLUMNS, FLOAT_COLUMNS, NUM_SCALARS, ROW_WIDTH
from jbatch.seam.shape import StateShape


class EngineState(NamedTuple):
    """Donated to every step, which updates it in place."""

    rows: Int[Array, "num_rows row_width"]  # columns: see seam/rows.py
    block_tables: Int[Array, "num_rows pages_per_seq"]
    kv_pages: tuple[Float[Array, "num_pages 2 kv_heads page_size head_dim"], ...]  # one per layer


def abstract_state(config: ModelConfig, shape: StateShape) -> Any:
    """An EngineState of shapes and dtypes, without memory."""
    page_shape = (shape.num_pages, 2, config.num_kv_heads, shape.page_size, config.head_dim)
    leaf: Any = jax.ShapeDtypeStruct
    return EngineState(
        rows=leaf((shape.num_rows, ROW_WIDTH), jnp.int32),
        block_tables=leaf((shape.num_rows, shape.pages_per_seq), jnp.int32),
        kv_pages=(leaf(page_shape, config.dtype),) * config.num_layers,
    )


def zeros(abstract: Any, device: jax.Device | None = None) -> Any:
    """A tree of zeros, on `device` or where its leaves are to lie: the state of an idle engine."""

    def made(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.zeros(leaf.shape, leaf.dtype, device=device if leaf.sharding is None else leaf.sharding)

    with fixed_settings():
        return jax.tree.map(made, abstract)


def free(tree: Any) -> None:
    """Free the memory of a tree of arrays, but of those that were given to a program."""
    for leaf in jax.tree.leaves(tree):
        if not leaf.is_deleted():
            leaf.delete()


class Rows:
    """Rows of device state, column by column: `rows["temperature"]` is [n], `rows["stop_ids"]` a matrix."""

    def __init__(self, columns: Int[Array, "n row_width"]):
        self.columns = columns

    def __getitem__(self, name: str) -> Num[Array, " n"] | Int[Array, "n stop_ids"]:
        if name == "stop_ids":
            return self.columns[:, NUM_SCALARS:]
        column = self.columns[:, COLUMNS[name]]
        return lax.bitcast_convert_type(column, jnp.float32) if name in FLOAT_COLUMNS else column


def write_columns(
    columns: Int[Array, "n row_width"], **values: Shaped[Array, " n"]
) -> Int[Array, "n row_width"]:
    """The columns with some integer ones replaced by name."""
    # A scatter would make a kernel of its own check that the column exists.
    column = jnp.arange(columns.shape[1])
    for name, value in values.items():
        columns = jnp.where(column == COLUMNS[name], value.astype(jnp.int32)[:, None], columns)
    return columns
