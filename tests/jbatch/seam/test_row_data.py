"""Row data: the layout of each feature."""

import math

import numpy as np
import pytest

from jbatch.sampling_params import MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN, MAX_LOGPROB_TOKEN_IDS
from jbatch.seam.row_data import FEATURES, RULED_OUT, row_data_size, unpack_row_data

VOCAB = 20
SHAPES = {
    "bias": [(VOCAB,)],
    "bad_words": [(MAX_BAD_WORD_IDS, MAX_BAD_WORD_LEN), (MAX_BAD_WORD_LEN - 1,)],
    "counts": [(VOCAB,)],
    "logprob_ids": [(MAX_LOGPROB_TOKEN_IDS,)],
}


@pytest.mark.parametrize("feature", FEATURES)
def test_the_row_comes_first_and_the_features_arrays_follow(feature):
    size = row_data_size(feature, VOCAB)
    assert size == 1 + sum(map(math.prod, SHAPES[feature]))
    row, *arrays = unpack_row_data(np.arange(size), feature, VOCAB)
    assert row.shape == () and row == 0
    assert [array.shape for array in arrays] == SHAPES[feature]
    assert np.concatenate([array.reshape(-1) for array in arrays]).tolist() == list(range(1, size))


def test_the_parts_of_a_numpy_array_are_views():
    packed = np.zeros(row_data_size("bad_words", VOCAB), np.int32)
    for part in unpack_row_data(packed, "bad_words", VOCAB):
        part[...] = 7
    assert (packed == 7).all()


def test_what_is_ruled_out_is_finite_and_below_any_logit_with_any_bias():
    assert np.isfinite(np.float32(RULED_OUT)) and np.float32(RULED_OUT) == RULED_OUT
    assert np.isfinite(np.float32(RULED_OUT) + np.float32(-100)) and RULED_OUT < -1e38
