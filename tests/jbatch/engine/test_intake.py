"""Checks that take the model: ids of its vocabulary, what is compiled, bad words as token ids."""

import pytest

from jbatch.engine.intake import ID_FIELDS, bad_word_ids, check_params
from jbatch.errors import RequestError
from jbatch.sampling_params import Sampler, SamplingParams
from tests.helpers.tokenizers import byte_level, numbered, wrapped


@pytest.mark.parametrize("field", ID_FIELDS)
def test_ids_must_be_of_the_vocabulary(field):
    def params(token_id):
        return SamplingParams(**{field: {token_id: 1} if field == "logit_bias" else [3, token_id]})

    check_params(params(95), 96, Sampler)
    with pytest.raises(RequestError, match=f"^{field}=96: must be from 0 to 95, the vocabulary$"):
        check_params(params(96), 96, Sampler)


def test_a_way_of_drawing_that_is_not_compiled():
    check_params(SamplingParams(temperature=0), 96, [Sampler.PLAIN])
    with pytest.raises(RequestError, match=r"'extended'.*LLM\(samplers=...\), or call llm.prepare"):
        check_params(SamplingParams(logprobs=1), 96, [Sampler.GREEDY, Sampler.FILTERED])


def words(tokenizer, *texts):
    return bad_word_ids(SamplingParams(bad_words=list(texts)), wrapped(tokenizer))


def test_bad_words_with_and_without_a_space():
    """And without the BOS that prompts begin with."""
    plain, spaced = words(byte_level(bos=True), "ab")
    assert wrapped(byte_level()).decode(plain) == "ab" and wrapped(byte_level()).decode(spaced) == " ab"
    assert len(plain) == 2 and len(spaced) == 3
    assert words(byte_level(), "ab", " ab", "ab") == (plain, spaced)


def test_bad_words_may_be_eight_tokens():
    assert max(map(len, words(byte_level(), "abcdefg"))) == 8
    with pytest.raises(RequestError, match=r"^bad_words='abcdefgh': is 9 tokens: must be 1 to 8$"):
        words(byte_level(), "abcdefgh")


def test_bad_words_need_a_tokenizer():
    assert bad_word_ids(SamplingParams(), None) == () == words(numbered())
    with pytest.raises(RequestError, match="no tokenizer"):
        bad_word_ids(SamplingParams(bad_words=["a"]), None)
