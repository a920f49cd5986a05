"""Configs with any value in any field: a model, or an error of one short line."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import pytest

from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import parse_config
from tests.helpers.model_configs import LLAMA3, REMOVED, YARN, config

RICH = config(
    rms_norm_eps=1e-5,
    head_dim=8,
    hidden_act="silu",
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    rope_theta=1e4,
    sliding_window=64,
    layer_types=["full_attention"] * 2,
    use_sliding_window=False,
    max_window_layers=1,
    torch_dtype="float32",
    eos_token_id=[2, 3],
    bos_token_id=1,
    original_max_position_embeddings=64,
    architectures=["LlamaForCausalLM"],
    quantization_config=None,
)
BAD = [
    REMOVED, None, 0, -1, 1, 2, 3, 1.5, 1e308, -1e-308, math.nan, math.inf, 2**31, 2**63, 10**400,
    True, False, "", "1", "yarn", "\ud800", [], [1], [[]], {}, {"a": 1}, {"rope_type": "yarn"},
]  # fmt: skip


def only_config_errors(raw: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parse_config(raw)
    except ConfigError as error:
        assert error.field and len(str(error)) < 1000
    else:
        assert parsed.num_heads % parsed.num_kv_heads == 0 and parsed.head_dim % 2 == 0


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_field_every_bad_value(family):
    scalings = [
        None,
        {"rope_type": "linear", "factor": 2.0},
        LLAMA3,
        {**YARN, "mscale": 1.0, "beta_fast": 32},
    ]
    for scaling in scalings:
        base = RICH | {"model_type": family, "rope_scaling": scaling}
        for value in BAD:
            for key in base:
                only_config_errors({k: v for k, v in (base | {key: value}).items() if v is not REMOVED})
            for key in scaling or ():
                inner = {k: v for k, v in {**(scaling or {}), key: value}.items() if v is not REMOVED}
                only_config_errors(base | {"rope_scaling": inner})


def test_several_fields_at_once():
    rng = random.Random(0)
    for _ in range(2000):
        raw = dict(RICH, model_type=rng.choice(["llama", "mistral", "qwen2", "qwen3"]))
        raw["rope_scaling"] = dict(rng.choice([LLAMA3, YARN, {}]))
        for _ in range(rng.randint(1, 4)):
            target = (
                rng.choice([raw, raw["rope_scaling"]]) if isinstance(raw.get("rope_scaling"), dict) else raw
            )
            key = rng.choice([*target, "surprise", "rope_parameters"])
            target[key] = rng.choice(BAD)
            if target[key] is REMOVED:
                del target[key]
        only_config_errors(raw)
