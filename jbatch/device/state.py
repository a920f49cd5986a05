"""The state that lives on the device between steps: running rows, block tables, and the KV cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jbatch.config import ModelConfig
from jbatch.host.plan import FLOAT_COLUMNS, NUM_SCALARS, ROW_WIDTH, RowSetup
from jbatch.host.row_data import unpack_row_data
from jbatch.sampling_params import MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN, MAX_LOGPROB_TOKEN_IDS


class EngineState(NamedTuple):
    """Donated to every step, which updates it in place."""

    rows: Int[Array, "num_rows row_width"]  # columns: see RowSetup
    block_tables: Int[Array, "num_rows pages_per_seq"]
    kv_pages: tuple[Float[Array, "num_pages 2 kv_heads page_size head_dim"], ...]  # one per layer


class ExtraState(NamedTuple):
    """What only EXTENDED steps keep of each row; donated to them beside the EngineState.

    Steps count tokens themselves, the rest is a request's RowData: stale where its row says that it has none.
    """

    in_prompt: Bool[Array, "num_rows vocab"]
    counts: Int[Array, "num_rows vocab"]  # of the output's tokens
    bias: Float[Array, "num_rows vocab"]
    bad_words: Int[Array, "num_rows words word_len"]
    history: Int[Array, "num_rows history"]
    logprob_ids: Int[Array, "num_rows ids"]


class StateShape(NamedTuple):
    """The sizes of an EngineState and its ExtraState."""

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

    def abstract_extra(self, config: ModelConfig) -> Any:
        """An ExtraState of shapes and dtypes, without memory."""
        rows, vocab = self.num_rows, config.vocab_size
        leaf: Any = jax.ShapeDtypeStruct
        return ExtraState(
            in_prompt=leaf((rows, vocab), jnp.bool),
            counts=leaf((rows, vocab), jnp.int32),
            bias=leaf((rows, vocab), jnp.float32),
            bad_words=leaf((rows, MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN), jnp.int32),
            history=leaf((rows, MAX_BAD_WORD_LEN - 1), jnp.int32),
            logprob_ids=leaf((rows, MAX_LOGPROB_TOKEN_IDS), jnp.int32),
        )

    def extra_bytes(self, config: ModelConfig) -> int:
        """Memory of an ExtraState."""
        leaves = jax.tree.leaves(self.abstract_extra(config))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def zeros(self, config: ModelConfig, device: jax.Device) -> EngineState:
        """An idle engine's state, on `device`."""
        return _zeros(self.abstract(config), device)

    def extra_zeros(self, config: ModelConfig, device: jax.Device) -> ExtraState:
        """An idle engine's extra state, on `device`."""
        return _zeros(self.abstract_extra(config), device)


def _zeros(abstract: Any, device: jax.Device) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=device), abstract)


def set_row(extra: ExtraState, packed: Int[Array, " size"]) -> ExtraState:
    """Put a packed RowData in place; one of a row that does not exist is dropped."""
    data = unpack_row_data(packed, extra.bias.shape[1])
    bias = lax.bitcast_convert_type(data.bias, jnp.float32)
    return extra._replace(
        bias=extra.bias.at[data.row].set(bias, mode="drop"),
        bad_words=extra.bad_words.at[data.row].set(data.bad_words, mode="drop"),
        history=extra.history.at[data.row].set(data.history, mode="drop"),
        logprob_ids=extra.logprob_ids.at[data.row].set(data.logprob_ids, mode="drop"),
    )


def count_chunks(
    extra: ExtraState,
    begun: Int[Array, " slots"],
    rows: Int[Array, " tokens"],
    ids: Int[Array, " tokens"],
    prompt: Bool[Array, " tokens"],
) -> ExtraState:
    """Count tokens that are prefilled, in their `rows`; first clear the rows `begun`. Rows that do not exist
    are dropped. Not all are the prompt's: a sequence that was preempted brings its output along."""
    num_rows = extra.counts.shape[0]
    in_prompt = extra.in_prompt.at[begun].set(False, mode="drop")
    counts = extra.counts.at[begun].set(0, mode="drop")
    return extra._replace(
        in_prompt=in_prompt.at[jnp.where(prompt, rows, num_rows), ids].set(True, mode="drop"),
        counts=counts.at[jnp.where(prompt, num_rows, rows), ids].add(1, mode="drop"),
    )


def count_drawn(
    extra: ExtraState, rows: Int[Array, " slots"], tokens: Int[Array, " slots"], drawn: Bool[Array, " slots"]
) -> ExtraState:
    """Count tokens that were drawn, and append them to the rows' histories."""
    rows = jnp.where(drawn, rows, extra.counts.shape[0])  # the others: dropped
    history = jnp.concatenate([extra.history[rows, 1:], tokens[:, None]], axis=1)
    return extra._replace(
        counts=extra.counts.at[rows, tokens].add(1, mode="drop"),
        history=extra.history.at[rows].set(history, mode="drop"),
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
