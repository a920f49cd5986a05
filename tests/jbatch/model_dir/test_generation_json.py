"""Sampling defaults of a generation_config.json: which keys count, and what may be in them."""

import json

import pytest

from jbatch.errors import ConfigError
from jbatch.model_dir.generation_json import describe_defaults, load_sampling_defaults
from jbatch.sampling_params import SamplingParams

LLAMA_3 = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "eos_token_id": [1, 2]}
QWEN_2 = {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_new_tokens": 2048}


def defaults_of(folder, content, source="auto"):
    (folder / "generation_config.json").write_text(json.dumps(content))
    return load_sampling_defaults(folder, source)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LLAMA_3, {"temperature": 0.6, "top_p": 0.9}),
        (
            QWEN_2,
            {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_tokens": 2048},
        ),
        ({"temperature": 0.6, "min_p": 0.1}, {"temperature": 0.6, "min_p": 0.1}),
        ({"do_sample": False, "top_k": 50}, {"top_k": 50}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1, "top_p": 1.0, "top_k": 0, "min_p": 0, "repetition_penalty": 1.0}, {}),
        (dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "max_new_tokens")), {}),
        ({"num_beams": 4, "min_new_tokens": 7, "no_repeat_ngram_size": 3, "stop_strings": ["x"]}, {}),
        ({}, {}),
    ],
)
def test_the_keys_that_vllm_takes(content, expected, tmp_path):
    assert defaults_of(tmp_path, content) == expected
    assert SamplingParams(**expected) == SamplingParams(**defaults_of(tmp_path, content))
    assert defaults_of(tmp_path, content, "jbatch") == {}


def test_without_the_file_there_are_none(tmp_path):
    assert load_sampling_defaults(tmp_path, "auto") == {}


def test_its_length_is_no_wish_of_a_request(tmp_path):
    assert SamplingParams(**defaults_of(tmp_path, {"max_new_tokens": 9})).fills_room


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("temperature", -1, "must be a number from 0 to 100"),
        ("temperature", "0.6", "must be a number"),
        ("top_p", 0, "must be above 0"),
        ("top_k", 2.5, "must be an integer"),
        ("top_k", True, "must be an integer"),
        ("min_p", [0.1], "must be a number"),
        ("repetition_penalty", 0, "must be a number from 0.01"),
        ("max_new_tokens", -1, "must be an integer"),
        ("max_new_tokens", 0, "must be at least 1"),
        ("max_new_tokens", 10**4000, "must be an integer"),
    ],
)
def test_values_that_no_request_may_have(key, value, reason, tmp_path):
    with pytest.raises(ConfigError, match=rf"^{key}=.*{reason}.*in generation_config\.json") as error:
        defaults_of(tmp_path, {key: value})
    assert error.value.field == key and len(str(error.value)) < 250
    assert defaults_of(tmp_path, {key: value}, "jbatch") == {}


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        load_sampling_defaults(tmp_path, "auto")


def test_as_a_line(tmp_path):
    assert describe_defaults({}) == ""
    line = "max_tokens=2048, repetition_penalty=1.05, temperature=0.7, top_k=20, top_p=0.8"
    assert describe_defaults(defaults_of(tmp_path, QWEN_2)) == line
