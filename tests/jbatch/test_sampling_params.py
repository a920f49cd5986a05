"""Parameters of a request: what is accepted, and the error that names what is not."""

import dataclasses
import math

import numpy as np
import pytest

from jbatch.errors import RequestError
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams, UpTo, seed_bits

VALUES = {
    "null": None,
    "-1": -1,
    "0": 0,
    "1": 1,
    "1.5": 1.5,
    "2**31": 2**31,
    "2**63": 2**63,
    "1e308": 1e308,
    "10**400": 10**400,  # math.isfinite raises OverflowError
    "10**5000": 10**5000,  # repr raises ValueError
    "nan": math.nan,
    "-inf": -math.inf,
    "text": "1",
    "true": True,
    "[]": [],
    "{}": {},
}
ACCEPTED = {
    "n": "1",
    "presence_penalty": "-1 0 1 1.5",
    "frequency_penalty": "-1 0 1 1.5",
    "repetition_penalty": "1 1.5",
    "temperature": "0 1 1.5",
    "top_p": "1",
    "top_k": "-1 0 1",
    "min_p": "0 1",
    "seed": "null -1 0 1 2**31",
    "stop": "null text []",
    "stop_token_ids": "null []",
    "ignore_eos": "true",
    "max_tokens": "null 0 1",
    "min_tokens": "0 1",
    "logprobs": "null 0 1",
    "prompt_logprobs": "null 0 1",
    "logprob_token_ids": "null []",
    "detokenize": "true",
    "skip_special_tokens": "true",
    "include_stop_str_in_output": "true",
    "logit_bias": "null {}",
    "allowed_token_ids": "null",
    "bad_words": "null []",
    "truncate_prompt_tokens": "null -1 1",
    "skip_reading_prefix_cache": "null true",
}
EDGES = [  # the last value accepted, the first refused
    ("temperature", 100, 100.1),
    ("temperature", 0.0, -1e-9),
    ("top_p", 1e-9, 0),
    ("top_p", 1, 1.001),
    ("top_k", 2**31 - 1, 2**31),
    ("top_k", -1, -2),
    ("min_p", 1.0, 1.001),
    ("seed", 2**63 - 1, 2**63),
    ("seed", -(2**63), -(2**63) - 1),
    ("seed", 5, 5.0),
    ("max_tokens", 2**31 - 1, 2**31),
    ("min_tokens", 2**31 - 1, 2**31),
    ("stop", ["x"] * 16, ["x"] * 17),
    ("stop", "x" * 256, "x" * 257),
    ("stop", "x", ""),
    ("stop", ["x", "y"], ["x", None]),
    ("n", 128, 129),
    ("presence_penalty", -2, -2.01),
    ("frequency_penalty", 2, 2.01),
    ("repetition_penalty", 0.01, 0.009),
    ("repetition_penalty", 100, 100.1),
    ("logprobs", 20, 21),
    ("prompt_logprobs", 20, -1),
    ("logprob_token_ids", [0] * 32, [0] * 33),
    ("logprob_token_ids", [1], [1.0]),
    ("logit_bias", {5: 100}, {5: 100.1}),
    ("logit_bias", {5: -100.0}, {-5: 1.0}),
    ("logit_bias", dict.fromkeys(range(1024), 1), dict.fromkeys(range(1025), 1)),
    ("logit_bias", {5: 1}, {"5": 1}),
    ("logit_bias", {5: 1}, [5]),
    ("allowed_token_ids", [2**31 - 1], [2**31]),
    ("allowed_token_ids", [5], 5),
    ("bad_words", ["x"] * 16, ["x"] * 17),
    ("bad_words", ["x"], "x"),
    ("bad_words", ["x"], [""]),
    ("stop_token_ids", [0] * 16, [0] * 17),
    ("stop_token_ids", [2**31 - 1], [2**31]),
    ("stop_token_ids", [0], [-1]),
    ("stop_token_ids", (3, 4), [3, True]),
    ("stop_token_ids", (3, 4), "34"),
    ("truncate_prompt_tokens", -1, -2),
    ("truncate_prompt_tokens", 1, 0),
    ("truncate_prompt_tokens", 2**31 - 1, 2**31),
]


HASHED = [
    1438993947,
    702919647,
    346674191,
    591547549,
]  # of 2**32, -2, 2**63 - 1 and -2**63: a change makes other texts of the same jobs


def test_the_table_names_every_parameter():
    assert list(ACCEPTED) == list(SamplingParams.__dataclass_fields__)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("field", ACCEPTED)
def test_any_value_is_accepted_or_refused_by_name(field, value):
    if value in ACCEPTED[field].split():
        SamplingParams(**{field: VALUES[value]})
        return
    with pytest.raises(RequestError, match=f"^{field}=") as error:
        SamplingParams(**{field: VALUES[value]})
    assert error.value.field == field and error.value.code == "invalid_request"
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("field, accepted, refused", EDGES)
def test_edges(field, accepted, refused):
    SamplingParams(**{field: accepted})
    with pytest.raises(RequestError, match=f"^{field}="):
        SamplingParams(**{field: refused})


def test_the_message_states_field_value_and_limit():
    with pytest.raises(RequestError, match=r"^temperature=101: must be a number from 0 to 100$"):
        SamplingParams(temperature=101)
    with pytest.raises(RequestError, match=r"^min_tokens=6: must be an integer from 0 to 5$"):
        SamplingParams(min_tokens=6, max_tokens=5)


def test_unknown_options_suggest_the_known_one():
    with pytest.raises(TypeError, match="no option 'max_new_tokens'; did you mean 'max_tokens'"):
        SamplingParams(max_new_tokens=5)
    with pytest.raises(TypeError, match="no option 'temprature'; did you mean 'temperature'"):
        SamplingParams(temprature=0.5)
    with pytest.raises(TypeError, match="no option 'zzz'; known: allowed_token_ids, bad_words, detokenize, "):
        SamplingParams(zzz=1)


@pytest.mark.parametrize("options", [{}, {"stop": "end", "logit_bias": {1: 2}, "allowed_token_ids": [3]}])
def test_checked_parameters_may_be_changed(options):
    params = SamplingParams(**options)
    assert dataclasses.replace(params, seed=3) == SamplingParams(**options, seed=3)


def test_stop_becomes_a_tuple():
    assert SamplingParams().stop == SamplingParams(stop=[]).stop == ()
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"], stop_token_ids=[1]).stop_token_ids == (1,)


# Seeds.


def test_minus_one_is_no_seed():
    assert SamplingParams(seed=-1) == SamplingParams(seed=None) == SamplingParams()


def test_a_seed_of_32_bits_draws_as_it_is():
    assert [seed_bits(seed) for seed in (0, 1, 2**31, 2**32 - 1)] == [0, 1, 2**31, 2**32 - 1]


def test_other_seeds_are_hashed():
    """Always to the same, so that a resumed job draws the same; and near ones to bits far apart."""
    assert [seed_bits(seed) for seed in (2**32, -2, 2**63 - 1, -(2**63))] == HASHED
    seeds = [*range(2**32, 2**32 + 1000), *range(-1001, -1)]
    drawn = np.array([seed_bits(seed) for seed in seeds], np.uint32)  # raises for what is none
    assert len(np.unique(drawn)) == len(seeds)
    ones = np.unpackbits(drawn.view(np.uint8).reshape(-1, 4), axis=1).mean(axis=0)
    assert np.all(np.abs(ones - 0.5) < 0.05), "every bit is as often one as zero"


# Texts and lengths.


@pytest.mark.parametrize("stop", ["b", ["a", "b"]])
def test_a_stop_string_needs_a_text(stop):
    with pytest.raises(RequestError, match=r"^stop=.*: takes detokenize=True"):
        SamplingParams(detokenize=False, stop=stop)
    assert not SamplingParams(detokenize=False, stop=[], stop_token_ids=[1]).detokenize


def test_a_default_of_the_model_is_no_wish_of_the_request():
    assert SamplingParams().fills_room and SamplingParams(max_tokens=UpTo(9)).fills_room
    assert not SamplingParams(max_tokens=9).fills_room
    assert dataclasses.replace(SamplingParams(max_tokens=UpTo(9)), temperature=0).fills_room
    with pytest.raises(RequestError, match=r"^min_tokens=10: .*generation_config.json sets max_tokens=9"):
        SamplingParams(min_tokens=10, max_tokens=UpTo(9))


@pytest.mark.parametrize("temperature, greedy", [(0, True), (9e-6, True), (1e-5, False), (1, False)])
def test_a_tiny_temperature_is_greedy(temperature, greedy):
    assert SamplingParams(temperature=temperature).greedy is greedy


# Ways of drawing.

SCORED, PENALISED = {"logprobs": 0}, {"presence_penalty": 0.1}


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"temperature": 0}, Sampler.GREEDY),
        ({"temperature": 0, "top_k": 5}, Sampler.GREEDY),
        ({}, Sampler.PLAIN),
        ({"top_k": -1, "top_p": 1, "min_p": 0}, Sampler.PLAIN),
        ({"top_k": 5}, Sampler.FILTERED),
        ({"top_p": 0.5}, Sampler.FILTERED),
        ({"min_p": 0.1}, Sampler.FILTERED),
        ({"temperature": 0, "logprobs": 0}, Sampler.LOGPROBS),
        ({"logprobs": 20, "top_k": 5}, Sampler.LOGPROBS),
        ({"prompt_logprobs": 0}, Sampler.LOGPROBS),
        ({"logprob_token_ids": [0]}, Sampler.LOGPROBS),
        ({"presence_penalty": 0.1}, Sampler.PROCESSED),
        ({"frequency_penalty": -0.1}, Sampler.PROCESSED),
        ({"repetition_penalty": 1.1}, Sampler.PROCESSED),
        ({"logit_bias": {0: 0}}, Sampler.PROCESSED),
        ({"allowed_token_ids": [0]}, Sampler.PROCESSED),
        ({"bad_words": ["x"]}, Sampler.PROCESSED),
        ({"temperature": 0, "bad_words": ["x"]}, Sampler.PROCESSED),
        ({**PENALISED, **SCORED}, Sampler.EXTENDED),
        ({"logit_bias": {0: 0}, "prompt_logprobs": 0}, Sampler.EXTENDED),
        ({"bad_words": ["x"], "logprob_token_ids": [0]}, Sampler.EXTENDED),
        ({"bad_words": [], "logit_bias": {}, "n": 3, "logprob_token_ids": []}, Sampler.PLAIN),
    ],
)
def test_the_least_that_serves_a_request(options, least):
    assert SamplingParams(**options).sampler == least


def test_scalars_of_numpy_are_numbers():
    params = SamplingParams(
        n=np.int64(2),
        temperature=np.float32(0.5),
        top_p=np.float64(0.9),
        seed=np.uint64(7),
        ignore_eos=np.bool_(True),
        stop_token_ids=[np.int32(3)],
        logit_bias={np.int64(4): np.float32(1)},
    )
    plain = SamplingParams(
        n=2, temperature=0.5, top_p=0.9, seed=7, ignore_eos=True, stop_token_ids=[3], logit_bias={4: 1.0}
    )
    assert params == plain and repr(params) == repr(plain)
    with pytest.raises(RequestError, match=r"^n="):
        SamplingParams(n=np.float32(2))
    with pytest.raises(RequestError, match=r"^temperature="):
        SamplingParams(temperature=np.float32("nan"))


@pytest.mark.parametrize("field", ["allowed_token_ids", "stop_token_ids", "bad_words", "logprob_token_ids"])
def test_an_array_of_numpy_is_no_list(field):
    with pytest.raises(RequestError, match=rf"^{field}=array\(\[1, 2\]\): must be a list of at most "):
        SamplingParams(**{field: np.array([1, 2])})


def test_parameters_are_given_by_name():
    with pytest.raises(TypeError, match=r"SamplingParams\(0.5\): give it by name, as temperature=0.5"):
        SamplingParams(0.5)


def test_a_field_is_changed_in_a_copy():
    params = SamplingParams(temperature=0)
    with pytest.raises(
        dataclasses.FrozenInstanceError, match=r"dataclasses\.replace\(\.\.\., n=4\) makes a copy"
    ):
        params.n = 4
    assert dataclasses.replace(params, n=4) == SamplingParams(temperature=0, n=4)
