from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from jbatch.config import ModelConfig, RopeConfig
from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import load_bos_token_id, load_config, load_eos_token_ids, parse_config

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
REMOVED = object()


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def config(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**BASE, **changes}.items() if value is not REMOVED}


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
    ],
)
def test_what_the_keys_mean(changes, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = parse_config(config(**changes))
    assert {name: getattr(parsed, name) for name in expected} == expected


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
        (dict(model_type="gpt2"), "model_type"),
        (dict(model_type=["llama"]), "model_type"),
        (dict(hidden_act="gelu"), "hidden_act"),
        (dict(hidden_act=None), "hidden_act"),
        (dict(quantization_config={"quant_method": "awq"}), "quantization_config"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
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
    if isinstance(changes.get("rope_scaling"), dict):
        kept = {key: value for key, value in changes["rope_scaling"].items() if value is not REMOVED}
        changes = {**changes, "rope_scaling": kept}
    with pytest.raises(ConfigError) as error:
        parse_config(config(**changes))
    assert error.value.field == field and field in str(error.value)


def test_dynamic_says_why():
    with pytest.raises(ConfigError, match="depend on how long"):
        parse_config(config(rope_scaling={"type": "dynamic", "factor": 2.0}))


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


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"model_type": "llama", "model_type": "llama"}',
        b'{"rms_norm_eps": NaN}',
        b'{"rms_norm_eps": -Infinity}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b" " * (2**24 + 1),
    ],
)
def test_bad_files_are_config_errors(tmp_path, data):
    with pytest.raises(ConfigError, match=r"config\.json") as error:
        load_config(write(tmp_path, data))
    assert len(str(error.value)) < 1000


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(tmp_path / "nowhere")
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
    assert load_bos_token_id(tmp_path) is None
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 7}')
    assert load_bos_token_id(tmp_path) == 7
    write(tmp_path, config(bos_token_id=1))
    assert load_bos_token_id(tmp_path) == 1


def test_parsing_imports_neither_jax_nor_what_auto_map_names(tmp_path):
    write(tmp_path, config(auto_map={"AutoConfig": "evil.Config"}, _attn_implementation_internal="evil"))
    (tmp_path / "evil.py").write_text("raise SystemExit(9)")
    code = (
        "import sys; from jbatch.model_dir.config_json import load_config\n"
        f"load_config({str(tmp_path)!r})\n"
        "sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'torch', 'transformers', 'socket')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


# ---- fuzzing ----

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
