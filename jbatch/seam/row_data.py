"""What the device must know of some sequences before they draw, and is too much for a step's packed array.

It goes up by itself, once, before the step in which its sequence begins to draw.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jbatch.sampling_params import MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN, MAX_LOGPROB_TOKEN_IDS
from jbatch.seam.fields import A, Field, Ints, fields_of, split

RULED_OUT = float(np.finfo(np.float32).min)  # finite, so that who looks for broken logits can look at these


class RowData(NamedTuple):
    """One sampling feature's data of one row."""

    feature: str  # of FEATURES
    packed: Int[Ints, " size"]  # int32: the row, then the feature's arrays


# The arrays of each feature, by the size of the vocabulary.
FEATURES: dict[str, Callable[[int], tuple[tuple[int, ...], ...]]] = {
    # float32 bits, added to the logits; RULED_OUT rules a token out
    "bias": lambda vocab_size: ((vocab_size,),),
    # words, aligned right, with -1 in front and where there is none; the last tokens before the one to draw
    "bad_words": lambda vocab_size: ((MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN), (MAX_BAD_WORD_LEN - 1,)),
    # of each token, twice its number in the output so far, plus 1 where the prompt has it
    "counts": lambda vocab_size: ((vocab_size,),),
    # ids whose log-probabilities are reported, padded with -1
    "logprob_ids": lambda vocab_size: ((MAX_LOGPROB_TOKEN_IDS,),),
}


@functools.cache
def _layout(feature: str, vocab_size: int) -> tuple[Field, ...]:
    return fields_of(((), *FEATURES[feature](vocab_size)))


def row_data_size(feature: str, vocab_size: int) -> int:
    """Elements of a feature's packed data."""
    return _layout(feature, vocab_size)[-1].end


def unpack_row_data(packed: A, feature: str, vocab_size: int) -> tuple[A, ...]:
    """The row, and the feature's arrays: views of a packed array (NumPy), or slices of it (JAX)."""
    return tuple(split(packed, _layout(feature, vocab_size)))
