"""What goes up by itself for a row: dense, and in place before the row draws."""

import dataclasses

import numpy as np
import pytest

from jbatch.host.request import Request, Sequence
from jbatch.host.row_data import RULED_OUT, row_data, row_data_size, unpack_row_data
from jbatch.sampling_params import MAX_BAD_WORD_IDS, MAX_LOGPROB_TOKEN_IDS, SamplingParams

VOCAB = 20


def fields_of(token_ids=(5, 6, 7), bad_word_ids=(), **params):
    request = Request("r", tuple(token_ids), SamplingParams(**params), 10, (), 0, bad_word_ids=bad_word_ids)
    packed = row_data(Sequence(0, request, list(token_ids), 3), 2, VOCAB)
    if packed is None:
        return None
    assert packed.dtype == np.int32 and packed.shape == (row_data_size(VOCAB),)
    fields = unpack_row_data(packed, VOCAB)
    return fields._replace(bias=fields.bias.view(np.float32))


@pytest.mark.parametrize("params", [{}, {"logprobs": 3, "prompt_logprobs": 3}, {"presence_penalty": 1}])
def test_most_requests_need_none(params):
    assert fields_of(**params) is None


def test_a_bias_is_dense():
    fields = fields_of(logit_bias={3: 1.5, 19: -100})
    expected = np.zeros(VOCAB, np.float32)
    expected[[3, 19]] = 1.5, -100
    np.testing.assert_array_equal(fields.bias, expected)
    assert fields.row == 2 and (fields.bad_words == -1).all() and (fields.logprob_ids == -1).all()


def test_what_is_not_allowed_is_ruled_out_whatever_its_bias():
    fields = fields_of(allowed_token_ids=[3, 4], logit_bias={3: 1.5, 9: 100})
    expected = np.full(VOCAB, RULED_OUT, np.float32)
    expected[[3, 4]] = 1.5, 0
    np.testing.assert_array_equal(fields.bias, expected)


def test_bad_words_are_aligned_right_and_the_history_is_the_sequences_end():
    fields = fields_of(bad_word_ids=((4,), (1, 2, 3), tuple(range(8))))
    assert fields.bad_words.shape[0] == MAX_BAD_WORD_IDS
    assert fields.bad_words[:3].tolist() == [[-1] * 7 + [4], [-1] * 5 + [1, 2, 3], list(range(8))]
    assert (fields.bad_words[3:] == -1).all()
    assert fields.history.tolist() == [-1, -1, -1, -1, 5, 6, 7]
    assert fields_of(range(12), ((4,),)).history.tolist() == [5, 6, 7, 8, 9, 10, 11]


def test_ids_to_report():
    fields = fields_of(logprob_token_ids=[9, 0])
    assert fields.logprob_ids.tolist() == [9, 0] + [-1] * (MAX_LOGPROB_TOKEN_IDS - 2)
    assert not fields.bias.any()


def test_the_history_of_a_preempted_sequence_has_its_output():
    request = Request("r", (5,), SamplingParams(bad_words=["x"]), 10, (), 0, bad_word_ids=((4,),))
    sequence = Sequence(0, dataclasses.replace(request), [5, 8, 9], 3)
    assert unpack_row_data(row_data(sequence, 0, VOCAB), VOCAB).history.tolist() == [-1] * 4 + [5, 8, 9]
