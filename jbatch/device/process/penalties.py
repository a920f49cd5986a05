"""Repetition, presence and frequency penalties: what a sequence has already counts against it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jbatch.device.state import Rows
from jbatch.seam.row_data import unpack_row_data

FEATURE = "counts"


class Counts(NamedTuple):
    """The tokens of each row's sequence, prompt and output apart."""

    in_prompt: Bool[Array, "num_rows vocab"]
    in_output: Int[Array, "num_rows vocab"]  # how often


def abstract(num_rows: int, vocab_size: int) -> Any:
    """Its state."""
    leaf: Any = jax.ShapeDtypeStruct
    return Counts(leaf((num_rows, vocab_size), jnp.bool), leaf((num_rows, vocab_size), jnp.int32))


def set_row(state: Counts, packed: Int[Array, " size"]) -> Counts:
    """Put a row's data in place; that of a row that does not exist is dropped."""
    row, counts = unpack_row_data(packed, FEATURE, state.in_output.shape[1])
    return Counts(
        state.in_prompt.at[row].set(counts & 1 > 0, mode="drop"),
        state.in_output.at[row].set(counts >> 1, mode="drop"),
    )


def penalise(logits: Float[Array, "draws vocab"], rows: Rows, state: Counts) -> Float[Array, "draws vocab"]:
    """The repetition penalty counts prompt and output (Keskar et al. 2019), the other two the output alone
    (OpenAI). Rows without penalties keep their logits, whatever their state holds."""
    seen = state.in_prompt | (state.in_output > 0)
    repetition = rows["repetition_penalty"][:, None]
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(seen, repeated, logits)
    logits -= rows["frequency_penalty"][:, None] * state.in_output
    return logits - rows["presence_penalty"][:, None] * (state.in_output > 0)


def count(
    state: Counts, rows: Int[Array, " draws"], tokens: Int[Array, " draws"], drawn: Bool[Array, " draws"]
) -> Counts:
    """The tokens that were drawn are in the output now."""
    rows = jnp.where(drawn, rows, state.in_output.shape[0])  # the others: dropped
    return state._replace(in_output=state.in_output.at[rows, tokens].add(1, mode="drop"))
