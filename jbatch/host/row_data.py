"""What the device must know of a sequence before it draws, by what its request asks for."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from jbatch.host.request import Sequence
from jbatch.sampler import Sampler
from jbatch.sampling_params import MAX_BAD_WORD_LEN, SamplingParams
from jbatch.seam.row_data import RULED_OUT, RowData, row_data_size, unpack_row_data


def row_data(
    sequence: Sequence, row: int, vocab_size: int, sampler: Sampler, *, counts: bool = False
) -> tuple[RowData, ...]:
    """For a sequence whose known tokens have all been planned: what a program of `sampler` looks at.

    Args:
      counts: of its tokens, also where it has no penalties.
    """
    params = sequence.request.params
    features: list[tuple[str, tuple[Int[np.ndarray, "..."], ...]]] = []
    if sampler.processes:
        if params.logit_bias or params.allowed_token_ids:
            features.append(("bias", (_bias(params, vocab_size).view(np.int32),)))
        if sequence.request.bad_word_ids:
            features.append(("bad_words", _bad_words(sequence)))
        if params.penalised or counts:
            features.append(("counts", (_counts(sequence, vocab_size),)))
    if sampler.reports and params.logprob_token_ids:
        features.append(("logprob_ids", (np.array(params.logprob_token_ids, np.int32),)))
    return tuple(_packed(name, row, arrays, vocab_size) for name, arrays in features)


def _packed(feature: str, row: int, arrays: tuple[Int[np.ndarray, "..."], ...], vocab_size: int) -> RowData:
    """Arrays may be shorter than their places: -1 fills them."""
    packed = np.full(row_data_size(feature, vocab_size), -1, np.int32)
    packed_row, *places = unpack_row_data(packed, feature, vocab_size)
    packed_row[...] = row
    for place, array in zip(places, arrays, strict=True):
        place[: len(array)] = array
    return RowData(feature, packed)


def _bias(params: SamplingParams, vocab_size: int) -> Float[np.ndarray, " vocab"]:
    bias = np.zeros(vocab_size, np.float32)
    for token_id, value in (params.logit_bias or {}).items():
        bias[token_id] = value
    if params.allowed_token_ids:
        ruled_out = np.ones(vocab_size, bool)
        ruled_out[list(params.allowed_token_ids)] = False
        bias[ruled_out] = RULED_OUT
    return bias


def _bad_words(sequence: Sequence) -> tuple[Int[np.ndarray, "words word_len"], Int[np.ndarray, " history"]]:
    """The words, and the last tokens before the one to draw."""
    words = np.full((len(sequence.request.bad_word_ids), MAX_BAD_WORD_LEN), -1, np.int32)
    for idx, word in enumerate(sequence.request.bad_word_ids):
        words[idx, MAX_BAD_WORD_LEN - len(word) :] = word
    history = np.full(MAX_BAD_WORD_LEN - 1, -1, np.int32)
    last = sequence.token_ids[-(MAX_BAD_WORD_LEN - 1) :]
    history[MAX_BAD_WORD_LEN - 1 - len(last) :] = last
    return words, history


def _counts(sequence: Sequence, vocab_size: int) -> Int[np.ndarray, " vocab"]:
    """From the whole prompt, whatever part of it was computed, and the output so far: a sequence that was
    preempted has some."""
    output = np.bincount(np.array(sequence.output_token_ids, np.int64), minlength=vocab_size)
    counts = 2 * output.astype(np.int32)
    counts[list(set(sequence.request.prompt_token_ids))] += 1
    return counts
