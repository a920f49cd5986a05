"""Rotary settings: what both spellings mean, and what is refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jbatch.config import RopeConfig
from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import parse_config
from tests.helpers.model_configs import LLAMA3, REMOVED, YARN, config


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.0}, LLAMA3, YARN])
def test_old_and_new_spelling_mean_the_same(scaling):
    old = {"rope_theta": 5e5, "rope_scaling": scaling, "torch_dtype": "float32"}
    new = {
        "rope_parameters": {"rope_theta": 5e5, **(scaling or {"rope_type": "default"})},
        "dtype": "float32",
    }
    older = dict(old)
    if scaling:
        older["rope_scaling"] = {"type": scaling["rope_type"], **scaling}
        del older["rope_scaling"]["rope_type"]
    parsed = [parse_config(config(**spelling)) for spelling in (old, older, new, old | new)]
    assert parsed[0].rope.theta == 5e5 and len(set(parsed)) == 1


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (LLAMA3, RopeConfig(10000.0, "llama3", 8.0, 64, 1.0, 4.0)),
        (YARN, RopeConfig(10000.0, "yarn", 4.0, 64, attention_factor=0.1 * math.log(4) + 1)),
        (
            {**YARN, "original_max_position_embeddings": None},
            RopeConfig(10000.0, "yarn", 4.0, 256, attention_factor=0.1 * math.log(4) + 1),
        ),
        (
            {**YARN, "factor": None},
            RopeConfig(10000.0, "yarn", 4.0, 64, attention_factor=0.1 * math.log(4) + 1),
        ),
        ({**YARN, "attention_factor": 1.5}, RopeConfig(10000.0, "yarn", 4.0, 64, attention_factor=1.5)),
        (
            {**YARN, "mscale": 0.7, "mscale_all_dim": 0.5},
            RopeConfig(
                10000.0,
                "yarn",
                4.0,
                64,
                attention_factor=(0.07 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
            ),
        ),
        (
            {**YARN, "attention_factor": 1.0, "beta_fast": 16, "beta_slow": 2, "truncate": False},
            RopeConfig(10000.0, "yarn", 4.0, 64, beta_fast=16.0, beta_slow=2.0, truncate=False),
        ),
    ],
)
def test_rotary_scaling(scaling, expected):
    assert parse_config(config(rope_scaling=scaling)).rope == expected


def test_original_length_beside_the_rotary_settings():
    scaling = {**LLAMA3, "original_max_position_embeddings": None}
    rope = parse_config(config(rope_scaling=scaling, original_max_position_embeddings=64)).rope
    assert rope.original_max_len == 64


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (dict(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_type"),
        (dict(rope_scaling={"rope_type": "longrope", "factor": 2.0}), "rope_type"),
        (dict(rope_scaling={"type": "mrope"}), "rope_type"),
        (dict(rope_scaling={"rope_type": ["yarn"]}), "rope_scaling.rope_type"),
        (dict(rope_scaling={"factor": 2.0}), "rope_type"),
        (dict(rope_scaling={"rope_type": "linear", "type": "yarn", "factor": 2.0}), "rope_type"),
        (dict(rope_scaling={"rope_type": "linear"}), "factor"),
        (dict(rope_scaling={**YARN, "factor": None, "original_max_position_embeddings": None}), "factor"),
        (dict(rope_scaling={**YARN, "beta_fast": 1, "beta_slow": 2}), "beta_fast"),
        (dict(rope_scaling={**YARN, "truncate": None}), "truncate"),
        (dict(rope_scaling={**YARN, "llama_4_scaling_beta": 0.1}), "rope_scaling.llama_4_scaling_beta"),
        (dict(rope_scaling={**LLAMA3, "high_freq_factor": 1.0}), "high_freq_factor"),
        (dict(rope_scaling={**LLAMA3, "low_freq_factor": REMOVED}), "low_freq_factor"),
        (dict(rope_scaling=LLAMA3, original_max_position_embeddings=128), "original_max_position_embeddings"),
        (dict(rope_scaling=LLAMA3, rope_parameters=YARN), "rope_type"),
        (dict(rope_theta=1e4, rope_parameters={"rope_theta": 1e6}), "rope_theta"),
        (dict(rope_parameters={"full_attention": {"rope_theta": 1e6}}), "rope_parameters.full_attention"),
        (dict(rope_scaling=[]), "rope_scaling"),
        (dict(rope_theta=math.nan), "rope_theta"),
    ],
)
def test_refused_by_name(changes: dict[str, Any], field: str):
    if isinstance(changes.get("rope_scaling"), dict):
        kept = {key: value for key, value in changes["rope_scaling"].items() if value is not REMOVED}
        changes = {**changes, "rope_scaling": kept}
    with pytest.raises(ConfigError) as error:
        parse_config(config(**changes))
    assert error.value.field == field and field in str(error.value)


def test_dynamic_says_why():
    with pytest.raises(ConfigError, match="depend on how long"):
        parse_config(config(rope_scaling={"type": "dynamic", "factor": 2.0}))


@pytest.mark.parametrize("key", ["rope" + "x" * 10_000, "rope\nkey", "rope\u2028", "rope\ud800"])
def test_errors_stay_one_short_line_whatever_a_key_is_called(key):
    for raw in (config(**{key: 1}), config(rope_scaling={"rope_type": "linear", "factor": 2.0, key: 1})):
        with pytest.raises(ConfigError) as refused:
            parse_config(raw)
        message = str(refused.value)
        assert len(message) < 300 and len(message.splitlines()) == 1 and "rope" in message


def test_errors_stay_one_line_whatever_a_value_is():
    with pytest.raises(ConfigError) as refused:
        parse_config(config(rope_theta=1e4, rope_parameters={"rope_theta": "\u2028\n"}))
    assert str(refused.value) == r"rope_theta=10000.0: given twice, the other time as '\u2028\n'"
