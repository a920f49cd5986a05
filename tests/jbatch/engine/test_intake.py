"""The intake desk: checks that take the model, and what a request becomes."""

import math

import pytest

from jbatch.engine.intake import ID_FIELDS, Asked, Intake, Schedule, bad_word_ids, check_params, derive_seed
from jbatch.errors import RequestError
from jbatch.host.lengths.prediction import Prediction
from jbatch.host.lengths.predictors import RunningMean
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams, UpTo, seed_bits
from tests.helpers.tokenizers import byte_level, numbered, wrapped


@pytest.mark.parametrize("field", ID_FIELDS)
def test_ids_must_be_of_the_vocabulary(field):
    def params(token_id):
        return SamplingParams(**{field: {token_id: 1} if field == "logit_bias" else [3, token_id]})

    check_params(params(95), 96, Sampler)
    with pytest.raises(RequestError, match=f"^{field}=96: must be from 0 to 95, the vocabulary$"):
        check_params(params(96), 96, Sampler)


@pytest.mark.parametrize(
    ("params", "name", "compiled"),
    [
        ({"logprobs": 1}, "logprobs", (Sampler.GREEDY, Sampler.FILTERED, Sampler.PROCESSED)),
        ({"prompt_logprobs": 0}, "logprobs", (Sampler.PROCESSED,)),
        ({"presence_penalty": 1}, "processed", (Sampler.FILTERED, Sampler.LOGPROBS)),
        ({"logit_bias": {3: 1}}, "processed", (Sampler.LOGPROBS,)),
        ({"logprobs": 1, "presence_penalty": 1}, "extended", (Sampler.LOGPROBS, Sampler.PROCESSED)),
        ({"temperature": 1, "top_k": 3}, "filtered", (Sampler.GREEDY, Sampler.PLAIN)),
        ({"temperature": 1}, "plain", (Sampler.GREEDY,)),
        ({"temperature": 0}, "greedy", ()),
    ],
)
def test_a_way_of_drawing_that_is_not_compiled(params, name, compiled):
    """The least that serves it is named; each that can do it serves it."""
    asked = SamplingParams(**params)
    with pytest.raises(RequestError, match=rf"'{name}'.*LLM\(samplers=...\), or call llm.prepare"):
        check_params(asked, 96, compiled)
    check_params(asked, 96, [*compiled, Sampler[name.upper()]])
    check_params(asked, 96, [*compiled, Sampler.EXTENDED])


def words(tokenizer, *texts):
    return bad_word_ids(SamplingParams(bad_words=list(texts)), wrapped(tokenizer), 300)


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
    assert bad_word_ids(SamplingParams(), None, 300) == () == words(numbered())
    with pytest.raises(RequestError, match="no tokenizer"):
        bad_word_ids(SamplingParams(bad_words=["a"]), None, 300)


def test_bad_words_are_of_the_models_vocabulary():
    with pytest.raises(RequestError, match=r"^bad_words='12\.': has token 12: must be of 0 to 11, the voc"):
        bad_word_ids(SamplingParams(bad_words=["11.", "12."]), wrapped(numbered()), 12)


# What a request becomes.


def request_of(prompt=(5, 6), params=None, index=4, schedule=None, **options):
    options = {"vocab_size": 97, "max_seq_len": 128, "seed": 3, "clock": lambda: 17.5, **options}
    params, asked = SamplingParams(**params or {}), Asked(index, schedule=schedule or Schedule())
    return Intake(**options).request("r", prompt, params, asked, tuple(Sampler))


def schedule_of(request):
    wishes = {name: getattr(request, name, None) for name in Schedule._fields} | request.limits._asdict()
    return Schedule(**wishes)


def test_what_is_not_asked_for_follows_from_the_engine():
    request = request_of(eos_token_ids=(50, 2))
    assert (request.request_id, request.prompt, request.prompt_token_ids) == ("r", None, (5, 6))
    assert (request.max_tokens, request.stop_ids, request.seed) == (126, (2, 50), derive_seed(3, 4))
    assert schedule_of(request) == Schedule(17.5)
    assert (request.sample_idx, request.bad_word_ids) == (0, ())


def test_what_is_asked_for_is_kept():
    params = {"max_tokens": 7, "seed": 11, "stop_token_ids": [9, 2], "bad_words": ["a"]}
    schedule = Schedule(1.5, -2, 9.0, 3, "me", 100.0, 20.0, 900.0)
    request = request_of(
        "01.02.", params, schedule=schedule, eos_token_ids=(2,), tokenizer=wrapped(numbered())
    )
    assert (request.prompt, request.prompt_token_ids) == ("01.02.", (1, 2))
    assert (request.max_tokens, request.stop_ids, request.seed) == (7, (2, 9), 11)
    assert schedule_of(request) == schedule


@pytest.mark.parametrize("prompt", ["01.96.", [1, 96]])
def test_a_prompt_beyond_the_vocabulary_is_refused_whoever_made_its_ids(prompt):
    """A tokenizer may have tokens that its model was not given."""
    with pytest.raises(RequestError, match=r"^prompt_token_ids=96: must be from 0 to 95, the vocabulary$"):
        request_of(prompt, vocab_size=96, tokenizer=wrapped(numbered()))


def test_a_seed_becomes_32_bits():
    assert [request_of(params={"seed": seed}).seed for seed in (0, 2**32 - 1)] == [0, 2**32 - 1]
    assert request_of(params={"seed": -1}).seed == derive_seed(3, 4)
    assert request_of(params={"seed": -2}).seed == seed_bits(-2) and 0 <= seed_bits(-2) < 2**32


def test_a_default_length_is_cut_where_the_context_ends():
    assert request_of([1] * 28, {"max_tokens": UpTo(99)}).max_tokens == 99
    assert request_of([1] * 30, {"max_tokens": UpTo(99)}).max_tokens == 98
    assert request_of([1] * 30, {"max_tokens": 99}).max_tokens == 99  # the scheduler refuses it
    assert type(request_of(params={"max_tokens": UpTo(9)}).max_tokens) is int


def test_an_end_of_sequence_may_be_ignored():
    params = {"ignore_eos": True, "stop_token_ids": [9]}
    assert request_of(params=params, eos_token_ids=(2,)).stop_ids == (9,)


def test_a_prompt_that_fills_the_context_is_left_to_the_scheduler_to_refuse():
    assert request_of([1] * 128).max_tokens == request_of([1] * 200).max_tokens == 1


def truncated(prompt, most, *, bos=False, **params):
    """The token ids of a request with so many at most, where a sequence has room for 20."""
    asked = SamplingParams(truncate_prompt_tokens=most, **params)
    intake = Intake(vocab_size=300, max_seq_len=20, tokenizer=wrapped(byte_level(bos=bos)))
    return intake.request("r", prompt, asked, Asked(0), Sampler).prompt_token_ids


def test_a_prompt_keeps_its_last_tokens():
    ids = tuple(range(30))
    assert truncated(ids, 5) == ids[-5:] and truncated(ids, 1) == ids[-1:]
    assert truncated(ids, 30) == truncated(ids, None) == truncated(ids, 2**31 - 1) == ids
    assert truncated(ids, -1) == ids[-19:], "one token is left to generate"
    assert truncated(ids, -1, max_tokens=0) == ids[-20:] and truncated(ids, -1, max_tokens=7) == ids[-13:]
    assert truncated(ids, -1, max_tokens=40) == ids[-1:], "and the scheduler refuses it"


def test_the_begin_of_a_text_stays_in_front():
    """As in vLLM; that of token ids does not."""
    plain = truncated("abcdef", None)
    assert truncated("abcdef", 3, bos=True) == (256, *plain[-2:]) and truncated("abcdef", 1, bos=True) == (
        256,
    )
    assert truncated("abcdef", 7, bos=True) == (256, *plain) and truncated("abcdef", 3) == plain[-3:]
    assert truncated((256, *plain), 3, bos=True) == plain[-3:]


def test_a_predictor_says_how_long_answers_will_be():
    intake = Intake(vocab_size=97, max_seq_len=128, predictor=RunningMean())

    def predicted(**schedule):
        params, asked = SamplingParams(max_tokens=50), Asked(0, schedule=Schedule(**schedule))
        return intake.request("r", [5], params, asked, tuple(Sampler)).predicted_len

    assert predicted() == 50  # nothing has ended
    intake.history.add(1, 8)
    intake.history.add(1, 9)
    assert predicted() == 8 and predicted(predicted_len=3) == 3


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (None, "it must give a Prediction of numbers of at least 0, with 6 quantiles, and gave None"),
        (7, "and gave 7 for this request"),
        (Prediction(math.nan, (1.0,) * 6), "and gave Prediction"),
        (Prediction(1.0, (1.0,) * 5), "and gave Prediction"),
        (Prediction(1.0, (1.0,) * 5 + (math.inf,)), "and gave Prediction"),
        (KeyError("x"), "it fails for this request: KeyError: 'x'"),
    ],
)
def test_a_predictor_of_ones_own_that_fails_refuses_the_request(gives, message):
    class Mine:
        def predict(self, request, history):
            if isinstance(gives, Exception):
                raise gives
            return gives

    intake = Intake(vocab_size=97, max_seq_len=128, predictor=Mine())
    with pytest.raises(RequestError, match=f"^predictor='Mine': .*{message}"):
        intake.request("r", [5], SamplingParams(), Asked(0), tuple(Sampler))
