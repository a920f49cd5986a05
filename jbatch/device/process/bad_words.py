"""bad_words: texts that may not be completed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jbatch.device.state import Rows
from jbatch.sampling_params import MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN
from jbatch.seam.row_data import RULED_OUT, unpack_row_data

FEATURE = "bad_words"


class BadWords(NamedTuple):
    """The words of each row, and its last tokens: see seam/row_data.py."""

    words: Int[Array, "num_rows words word_len"]
    history: Int[Array, "num_rows history"]


def abstract(num_rows: int, vocab_size: int) -> Any:
    """Its state."""
    leaf: Any = jax.ShapeDtypeStruct
    return BadWords(
        leaf((num_rows, MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN), jnp.int32),
        leaf((num_rows, MAX_BAD_WORD_LEN - 1), jnp.int32),
    )


def set_row(state: BadWords, packed: Int[Array, " size"]) -> BadWords:
    """Put a row's data in place; that of a row that does not exist is dropped."""
    row, words, history = unpack_row_data(packed, FEATURE, 0)
    return BadWords(
        state.words.at[row].set(words, mode="drop"), state.history.at[row].set(history, mode="drop")
    )


def rule_out(logits: Float[Array, "draws vocab"], rows: Rows, state: BadWords) -> Float[Array, "draws vocab"]:
    """Rule out the last token of each bad word whose other tokens have just been drawn."""
    begins, last = state.words[:, :, :-1], state.words[:, :, -1]
    begun = jnp.all((begins < 0) | (begins == state.history[:, None]), axis=-1)
    banned = begun & (last >= 0) & (rows["has_bad_words"] > 0)[:, None]
    draws, vocab = logits.shape
    ids = jnp.where(banned, last, vocab)  # out of range: dropped
    return logits.at[jnp.arange(draws)[:, None], ids].set(RULED_OUT, mode="drop")


def append(
    state: BadWords, rows: Int[Array, " draws"], tokens: Int[Array, " draws"], drawn: Bool[Array, " draws"]
) -> BadWords:
    """The tokens that were drawn are the rows' last ones now."""
    rows = jnp.where(drawn, rows, state.history.shape[0])  # the others: dropped
    history = jnp.concatenate([state.history[rows, 1:], tokens[:, None]], axis=1)
    return state._replace(history=state.history.at[rows].set(history, mode="drop"))
