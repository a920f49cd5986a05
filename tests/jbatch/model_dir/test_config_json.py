"""What the keys of a config.json mean, what is refused by name, and what its files may look like."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from jbatch.config import ModelConfig, RopeConfig
from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import load_config, load_eos_token_ids, load_token_id, parse_config
from tests.helpers.model_configs import BASE, REMOVED, config


def test_a_plain_llama():
    assert parse_config(config(rms_norm_eps=1e-5, rope_theta=5e5, torch_dtype="float16")) == ModelConfig(
        vocab_size=96,
        embed_dim=32,
        mlp_dim=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=5e5),
        dtype="float16",
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(num_key_value_heads=None), dict(num_kv_heads=4)),
        (dict(num_key_value_heads=REMOVED), dict(num_kv_heads=4)),
        (dict(head_dim=None), dict(head_dim=8)),
        (dict(head_dim=16), dict(head_dim=16)),
        (dict(attention_bias=True), dict(qkv_bias=True, o_bias=True, mlp_bias=False)),
        (dict(mlp_bias=True), dict(qkv_bias=False, o_bias=False, mlp_bias=True)),
        (dict(model_type="qwen2"), dict(qkv_bias=True, o_bias=False, qk_norm=False, sliding_window=None)),
        (dict(model_type="qwen3"), dict(qkv_bias=False, qk_norm=True, head_dim=128)),
        (dict(model_type="qwen3", attention_bias=True), dict(qkv_bias=True, o_bias=True)),
        (dict(model_type="mistral"), dict(sliding_window=4096)),
        (dict(model_type="mistral", sliding_window=None), dict(sliding_window=None)),
        (dict(model_type="mistral", sliding_window=64), dict(sliding_window=64)),
        (
            dict(model_type="mistral", num_attention_heads=8, num_key_value_heads=REMOVED),
            dict(num_kv_heads=8),
        ),
        (dict(sliding_window=64), dict(sliding_window=64)),
        (dict(model_type="qwen2", use_sliding_window=False, sliding_window=64), dict(sliding_window=None)),
        (dict(model_type="qwen2", use_sliding_window=True, sliding_window=64), dict(sliding_window=None)),
        (
            dict(model_type="qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1),
            dict(sliding_window=64),
        ),
        (
            dict(model_type="qwen3", use_sliding_window=True, layer_types=["full_attention"] * 2),
            dict(sliding_window=None),
        ),
        (
            dict(
                model_type="qwen3",
                use_sliding_window=True,
                layer_types=["full_attention", "sliding_attention"],
            ),
            dict(sliding_window=4096),
        ),
        (dict(tie_word_embeddings=True), dict(tie_word_embeddings=True)),
        (dict(hidden_act="silu", pretraining_tp=1, attention_dropout=0.1, auto_map={"a": "b.C"}), {}),
        (dict(dtype="float16", torch_dtype=None), dict(dtype="float16")),
        (dict(rope_scaling={}), dict(rope=RopeConfig())),
        (dict(partial_rotary_factor=1.0, quantization_config=None), {}),
        (dict(future_rope_thing=False, attention_novelty=None), {}),
        (dict(quantization_config={}), {}),
    ],
)
def test_what_the_keys_mean(changes, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = parse_config(config(**changes))
    assert {name: getattr(parsed, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(model_type="gpt2"), "model_type"),
        (dict(model_type=["llama"]), "model_type"),
        (dict(hidden_act="gelu"), "hidden_act"),
        (dict(hidden_act=None), "hidden_act"),
        (dict(quantization_config={"quant_method": "awq"}), "quantization_config"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
        (dict(dtype="float64"), "dtype"),
        (dict(dtype="float16", torch_dtype="bfloat16"), "dtype"),
        (dict(num_key_value_heads=3), "num_key_value_heads"),
        (dict(head_dim=7), "head_dim"),
        (dict(hidden_size=33), "hidden_size"),
        (dict(num_hidden_layers=1001), "num_hidden_layers"),
        (dict(num_hidden_layers=True), "num_hidden_layers"),
        (dict(num_hidden_layers=2.0), "num_hidden_layers"),
        (dict(rms_norm_eps=math.nan), "rms_norm_eps"),
        (dict(rms_norm_eps=math.inf), "rms_norm_eps"),
        (dict(rms_norm_eps=True), "rms_norm_eps"),
        (dict(tie_word_embeddings=None), "tie_word_embeddings"),
        (dict(tie_word_embeddings=1), "tie_word_embeddings"),
        (dict(layer_types=["full_attention"]), "layer_types"),
        (dict(layer_types=["full_attention", "linear_attention"]), "layer_types"),
        (dict(model_type="mistral", attention_bias=True), "attention_bias"),
        (dict(model_type="qwen2", mlp_bias=True), "mlp_bias"),
        (dict(use_sliding_window=True), "use_sliding_window"),
        (dict(sliding_window=0), "sliding_window"),
        (dict(num_experts=8), "num_experts"),
        (dict(attn_logit_softcapping=30.0), "attn_logit_softcapping"),
        (dict(some_new_norm="yes"), "some_new_norm"),
        (dict(is_encoder_decoder=True), "is_encoder_decoder"),
        (dict(per_layer_config={"0": {"head_dim": 4}}), "per_layer_config"),
        *((dict([(name, REMOVED)]), name) for name in BASE if name.split("_")[0] not in ("max", "num")),
    ],
)
def test_refused_by_name(changes, field):
    with pytest.raises(ConfigError) as error:
        parse_config(config(**changes))
    assert error.value.field == field and field in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "quantization_config",
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
            "quant_method='gptq'",
        ),
        ("quantization_config", {"quant_method": "fp8", "x": "y" * 500}, "quant_method='fp8' is not impl"),
        ("compression_config", {"quant_method": "compressed-tensors"}, "quant_method='compressed-tensors'"),
        ("quantization", {"group_size": 64, "bits": 4}, "bits='4' is not implemented"),
        ("quantization_config", {"load_in_4bit": True}, "quantised weights are not implemented"),
        ("quantization_config", "awq", "quantised weights are not implemented"),
    ],
)
def test_quantised_models_say_how_and_what_would_do(key, value, message):
    with pytest.raises(ConfigError, match=f"^{key}=") as error:
        parse_config(config(**{key: value}))
    text = str(error.value)
    assert message in text and text.endswith("take the model's bfloat16, float16 or float32 weights")
    assert len(text) < 300


def test_a_sliding_window_is_refused_only_where_the_context_exceeds_it():
    parsed = parse_config(config(model_type="mistral", sliding_window=64))
    parsed.check_context(64)
    with pytest.raises(ConfigError, match=r"sliding_window=64.*max_model_len=65.*at most 64"):
        parsed.check_context(65)
    parse_config(config()).check_context(10**6)


def test_harmless_unknown_keys_warn_once_by_name():
    with pytest.warns(UserWarning, match="2 unknown keys: my_note, my_other_note") as caught:
        parse_config(config(my_note="hello", my_other_note=1))
    assert len(caught) == 1


# ---- against transformers ----


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_defaults_are_those_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        vocab_size=96, hidden_size=4096, intermediate_size=48, num_hidden_layers=32, num_attention_heads=32
    )
    theirs = transformers.AutoConfig.for_model(family, **sizes)
    ours = parse_config({"model_type": family, **sizes})
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 4096 // 32)
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    assert ours.o_bias == getattr(theirs, "attention_bias", False)
    assert parse_config(json.loads(theirs.to_json_string(use_diff=False))) == ours
    assert parse_config(json.loads(theirs.to_json_string())) == ours


# ---- files ----


def write(path: Path, content: Any) -> Path:
    path.mkdir(exist_ok=True)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (path / "config.json").write_bytes(data)
    return path


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(tmp_path)


def test_values_that_are_deep_or_long_give_short_messages(tmp_path):
    for value in (b"[" * 900 + b"]" * 900, b'"' + b"x" * 10**6 + b'"', b"9" * 4000):
        data = (
            json.dumps(config(hidden_size=0))
            .encode()
            .replace(b'"hidden_size": 0', b'"hidden_size": ' + value)
        )
        with pytest.raises(ConfigError, match="hidden_size") as error:
            load_config(write(tmp_path, data))
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        (2, None, {2}),
        ([2, 3], {"eos_token_id": 4}, {2, 3, 4}),
        (None, {"eos_token_id": [5, 6]}, {5, 6}),
        (2, {"eos_token_id": None}, {2}),
        (None, None, set()),
    ],
)
def test_end_of_sequence_is_a_union(tmp_path, in_config, in_generation, expected):
    write(tmp_path, config(eos_token_id=in_config))
    if in_generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(in_generation))
    assert load_eos_token_ids(tmp_path) == expected


@pytest.mark.parametrize("value", [96, -1, True, "2", 2.0, [2, None], {"a": 1}, [[2]]])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_bad_end_of_sequence_ids(tmp_path, file, value):
    write(tmp_path, config())
    raw = config(eos_token_id=value) if file == "config.json" else {"eos_token_id": value}
    (tmp_path / file).write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="eos_token_id"):
        load_eos_token_ids(tmp_path)


def test_a_broken_generation_config_is_named(tmp_path):
    write(tmp_path, config())
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        load_eos_token_ids(tmp_path)


def test_begin_of_sequence(tmp_path):
    write(tmp_path, config())
    assert load_token_id(tmp_path, "bos_token_id") is None
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 7}')
    assert load_token_id(tmp_path, "bos_token_id") == 7
    write(tmp_path, config(bos_token_id=1))
    assert load_token_id(tmp_path, "bos_token_id") == 1


def test_parsing_imports_neither_jax_nor_what_auto_map_names(tmp_path):
    write(tmp_path, config(auto_map={"AutoConfig": "evil.Config"}, _attn_implementation_internal="evil"))
    (tmp_path / "evil.py").write_text("raise SystemExit(9)")
    code = (
        "import sys; from jbatch.model_dir.config_json import load_config\n"
        f"load_config({str(tmp_path)!r})\n"
        "sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'torch', 'transformers', 'socket')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
