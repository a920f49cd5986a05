"""What goes up by itself for a row: feature by feature, dense, and in place before the row draws."""

import numpy as np
import pytest

from jbatch.host.request import Request, Sequence
from jbatch.host.row_data import row_data
from jbatch.sampler import Sampler
from jbatch.sampling_params import MAX_BAD_WORD_IDS, MAX_LOGPROB_TOKEN_IDS, SamplingParams
from jbatch.seam.row_data import RULED_OUT, row_data_size, unpack_row_data

VOCAB = 20
ALL = dict(logit_bias={3: 1}, bad_words=["x"], presence_penalty=1, logprob_token_ids=[4])


def sequence_of(token_ids=(5, 6, 7), bad_word_ids=(), output=(), **params):
    request = Request("r", tuple(token_ids), SamplingParams(**params), 10, (), 0, bad_word_ids=bad_word_ids)
    return Sequence(0, request, [*token_ids, *output], 3)


def features_of(sequence, sampler=Sampler.EXTENDED, **options):
    """The arrays of each feature, by name."""
    features = {}
    for name, packed in row_data(sequence, 2, VOCAB, sampler, **options):
        assert packed.dtype == np.int32 and packed.shape == (row_data_size(name, VOCAB),)
        row, *arrays = unpack_row_data(packed, name, VOCAB)
        assert row == 2 and name not in features
        features[name] = arrays
    return features


def bias_of(**params):
    (bias,) = features_of(sequence_of(**params))["bias"]
    return bias.view(np.float32)


@pytest.mark.parametrize("params", [{}, {"logprobs": 3, "prompt_logprobs": 3}, {"temperature": 0.5}])
def test_most_requests_need_none(params):
    assert features_of(sequence_of(**params)) == {}


@pytest.mark.parametrize(
    ("params", "feature"),
    [
        ({"logit_bias": {3: 1}}, "bias"),
        ({"allowed_token_ids": [3]}, "bias"),
        ({"bad_word_ids": ((4,),)}, "bad_words"),
        ({"presence_penalty": 1}, "counts"),
        ({"frequency_penalty": 1}, "counts"),
        ({"repetition_penalty": 2}, "counts"),
        ({"logprob_token_ids": [3]}, "logprob_ids"),
    ],
)
def test_each_feature_comes_where_it_is_asked_for_and_alone(params, feature):
    assert [*features_of(sequence_of(**params))] == [feature]


@pytest.mark.parametrize(
    ("sampler", "features"),
    [
        (Sampler.GREEDY, []),
        (Sampler.PLAIN, []),
        (Sampler.FILTERED, []),
        (Sampler.LOGPROBS, ["logprob_ids"]),
        (Sampler.PROCESSED, ["bias", "bad_words", "counts"]),
        (Sampler.EXTENDED, ["bias", "bad_words", "counts", "logprob_ids"]),
    ],
)
def test_what_the_program_does_not_look_at_is_left_out(sampler, features):
    assert [*features_of(sequence_of(bad_word_ids=((4,),), **ALL), sampler)] == features


def test_a_bias_is_dense():
    expected = np.zeros(VOCAB, np.float32)
    expected[[3, 19]] = 1.5, -100
    np.testing.assert_array_equal(bias_of(logit_bias={3: 1.5, 19: -100}), expected)


def test_what_is_not_allowed_is_ruled_out_whatever_its_bias():
    expected = np.full(VOCAB, RULED_OUT, np.float32)
    expected[[3, 4]] = 1.5, 0
    bias = bias_of(allowed_token_ids=[3, 4], logit_bias={3: 1.5, 9: 100})
    np.testing.assert_array_equal(bias, expected)


def bad_words_of(*args, **options):
    return features_of(sequence_of(*args, **options))["bad_words"]


def test_bad_words_are_aligned_right_and_the_history_is_the_sequences_end():
    words, history = bad_words_of(bad_word_ids=((4,), (1, 2, 3), tuple(range(8))))
    assert words.shape[0] == MAX_BAD_WORD_IDS
    assert words[:3].tolist() == [[-1] * 7 + [4], [-1] * 5 + [1, 2, 3], list(range(8))]
    assert (words[3:] == -1).all()
    assert history.tolist() == [-1, -1, -1, -1, 5, 6, 7]
    assert bad_words_of(range(12), ((4,),))[1].tolist() == [5, 6, 7, 8, 9, 10, 11]


def test_the_history_of_a_preempted_sequence_has_its_output():
    assert bad_words_of((5,), ((4,),), output=(8, 9))[1].tolist() == [-1] * 4 + [5, 8, 9]


def test_ids_to_report():
    (ids,) = features_of(sequence_of(logprob_token_ids=[9, 0]))["logprob_ids"]
    assert ids.tolist() == [9, 0] + [-1] * (MAX_LOGPROB_TOKEN_IDS - 2)


# Counts: twice in the output, plus 1 for the prompt.


def counts_of(sequence, **options):
    (counts,) = features_of(sequence, **options)["counts"]
    return {token: int(count) for token, count in enumerate(counts) if count}


def test_the_prompt_counts_once_however_often_a_token_is_in_it():
    assert counts_of(sequence_of((5, 6, 5, 19, 5), presence_penalty=1)) == {5: 1, 6: 1, 19: 1}


def test_counts_of_a_preempted_sequence_have_its_output():
    sequence = sequence_of((5, 6, 5), output=(7, 6, 7, 7, 0), presence_penalty=1)
    assert counts_of(sequence) == {5: 1, 6: 1 + 2, 7: 2 * 3, 0: 2}


@pytest.mark.parametrize("num_cached", [0, 2, 3, 4])
def test_counts_are_of_the_whole_prompt_whatever_was_cached(num_cached):
    """A prefix that another sequence computed is penalised as well."""
    sequence = sequence_of((5, 6, 7), output=(8,), repetition_penalty=2)
    sequence.num_cached = sequence.num_cached_planned = num_cached
    assert counts_of(sequence) == {5: 1, 6: 1, 7: 1, 8: 2}


def test_counts_for_whoever_wants_those_of_every_sequence():
    """A user's function on logits may look at them."""
    sequence = sequence_of((5, 6), output=(6,))
    assert features_of(sequence) == {} and counts_of(sequence, counts=True) == {5: 1, 6: 3}
    assert features_of(sequence, Sampler.LOGPROBS, counts=True) == {}
