"""What the device must know of some requests before they draw: biases, bad words, ids to report.

It is too much for the step's packed array, so that it goes up by itself, once, before the step in which its
sequence begins to draw: one int32 array, whose layout is here alone.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jbatch.host.plan import Field, fields_of
from jbatch.host.request import Sequence
from jbatch.sampling_params import MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN, MAX_LOGPROB_TOKEN_IDS, SamplingParams

RULED_OUT = float(np.finfo(np.float32).min)  # finite, so that who looks for broken logits can look at these


class RowData(NamedTuple):
    """A row of the device's ExtraState, but for what steps count there themselves."""

    row: Any  # []
    bias: Any  # float32 bits [vocab], added to the logits; RULED_OUT rules a token out
    bad_words: (
        Any  # [MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN], aligned right; -1 in front, and where there is none
    )
    history: Any  # [MAX_BAD_WORD_LEN - 1]: the last tokens before the one to draw; -1 in front
    logprob_ids: Any  # [MAX_LOGPROB_TOKEN_IDS], padded with -1


@functools.cache
def _layout(vocab_size: int) -> tuple[Field, ...]:
    words = MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN
    return fields_of(((), (vocab_size,), words, (MAX_BAD_WORD_LEN - 1,), (MAX_LOGPROB_TOKEN_IDS,)))


def row_data_size(vocab_size: int) -> int:
    """Elements of a packed RowData."""
    return _layout(vocab_size)[-1].end


def unpack_row_data(packed: Any, vocab_size: int) -> RowData:
    """Views of a packed RowData (NumPy), or slices of it (JAX)."""
    return RowData(*(packed[f.begin : f.end].reshape(f.shape) for f in _layout(vocab_size)))


def row_data(sequence: Sequence, row: int, vocab_size: int) -> Int[np.ndarray, " size"] | None:
    """Packed, for a sequence whose known tokens have all been planned; None where it needs none."""
    params, words = sequence.request.params, sequence.request.bad_word_ids
    if not (params.logit_bias or params.allowed_token_ids or params.logprob_token_ids or words):
        return None
    packed = np.full(row_data_size(vocab_size), -1, np.int32)
    fields = unpack_row_data(packed, vocab_size)
    fields.row[...] = row
    fields.bias[:] = _bias(params, vocab_size).view(np.int32)
    for idx, word in enumerate(words):
        fields.bad_words[idx, MAX_BAD_WORD_LEN - len(word) :] = word
    history = sequence.token_ids[-(MAX_BAD_WORD_LEN - 1) :]
    fields.history[MAX_BAD_WORD_LEN - 1 - len(history) :] = history
    fields.logprob_ids[: len(params.logprob_token_ids or ())] = params.logprob_token_ids or ()
    return packed


def _bias(params: SamplingParams, vocab_size: int) -> Float[np.ndarray, " vocab"]:
    bias = np.zeros(vocab_size, np.float32)
    for token_id, value in (params.logit_bias or {}).items():
        bias[token_id] = value
    if params.allowed_token_ids:
        ruled_out = np.ones(vocab_size, bool)
        ruled_out[list(params.allowed_token_ids)] = False
        bias[ruled_out] = RULED_OUT
    return bias
