"""Keys of a config.json that say again what others say, or a default, and what sounds like mathematics."""

import warnings

import pytest

from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import parse_config
from tests.helpers.model_configs import LLAMA3, config

QWEN_1 = dict(  # what a Qwen model keeps of its own keys when it is saved as a LLaMA
    attn_dropout_prob=0.0,
    emb_dropout_prob=0.0,
    layer_norm_epsilon=1e-6,
    no_bias=True,
    rotary_emb_base=10000,
    rotary_pct=1.0,
    scale_attn_weights=True,
    softmax_in_fp32=False,
    use_flash_attn="auto",
    activation="swiglu",
)


def silently(**changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return parse_config(config(**changes))


def test_all_together():
    assert silently(**QWEN_1) == parse_config(config())


@pytest.mark.parametrize(
    ("others", "agrees", "differs"),
    [
        # of activation and norms
        ({}, dict(activation="swiglu"), dict(activation="geglu")),
        ({}, dict(activation_function="SwiGLU"), dict(activation_function="gelu_new")),
        ({}, dict(mlp_hidden_act="silu"), dict(mlp_hidden_act="relu2")),
        ({}, dict(norm_type="RMSNorm"), dict(norm_type="layernorm")),
        ({}, dict(normalization="rms_norm"), dict(normalization="layer_norm")),
        ({}, dict(pre_norm=True), dict(pre_norm=False)),
        ({}, dict(norm_position="pre"), dict(norm_position="post")),
        ({}, dict(norm_eps=1e-6), dict(norm_eps=1e-5)),
        ({"rms_norm_eps": 1e-5}, dict(layer_norm_eps=1e-5), dict(layer_norm_eps=1e-12)),
        # of positions
        ({}, dict(rotary_emb_base=10000), dict(rotary_emb_base=1000000)),
        ({"rope_theta": 5e5}, dict(rope_base=500000.0), dict(rope_base=10000.0)),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            dict(rotary_base=500000),
            dict(rotary_base=1),
        ),
        ({}, dict(rotary_emb_fraction=1.0), dict(rotary_emb_fraction=0.5)),
        ({}, dict(rotary_dim=8), dict(rotary_dim=4)),
        ({}, dict(rope_type="default"), dict(rope_type="dynamic")),
        ({"rope_scaling": LLAMA3}, dict(rope_type="llama3"), dict(rope_type="default")),
        ({"rope_scaling": LLAMA3}, dict(rope_factor=8), dict(rope_factor=4.0)),
        ({}, dict(use_rotary_emb=True), dict(use_rotary_emb=False)),
        # of attention
        ({}, dict(attention_type="full_attention"), dict(attention_type="linear")),
        ({}, dict(attention="gqa"), dict(attention="mla")),
        ({}, dict(attention_head_size=8), dict(attention_head_size=16)),
        ({}, dict(attention_multiplier=0.35355339), dict(attention_multiplier=0.0078125)),
        ({"head_dim": 16}, dict(query_pre_attn_scalar=16), dict(query_pre_attn_scalar=8)),
        ({}, dict(attn_window_size=-1), dict(attn_window_size=1024)),
        ({"sliding_window": 64}, dict(attention_window=64), dict(attention_window=32)),
        ({}, dict(num_attention_groups=2), dict(num_attention_groups=4)),
        # of biases
        ({"attention_bias": True}, dict(qkv_bias=True, attn_bias=True), dict(no_bias=True)),
        ({"model_type": "qwen2", "sliding_window": None}, dict(use_qkv_bias=True), dict(attn_bias=True)),
        ({"mlp_bias": True}, dict(ffn_bias=True), dict(qkv_bias=True)),
        ({}, dict(no_bias=True, qkv_bias=False), dict(qkv_bias=True)),
        # of what is multiplied by one
        ({}, dict(scale_emb=1, residual_scale=1.0), dict(scale_emb=12)),
    ],
)
def test_what_restates_is_accepted_where_it_agrees(others, agrees, differs):
    assert silently(**others, **agrees) == parse_config(config(**others))
    (key,) = differs
    with pytest.raises(ConfigError, match=f"^{key}="):
        parse_config(config(**others, **differs))


def test_the_message_names_what_is_restated():
    reason = r"^rotary_emb_base=1000000: restates rope_theta, and disagrees: that is 10000\.0$"
    with pytest.raises(ConfigError, match=reason):
        parse_config(config(rotary_emb_base=1000000))


@pytest.mark.parametrize("value", [None, True, 10**400, 1e308, "10000", [10000], {"a": 1}])
def test_what_restates_may_hold_anything(value):
    for key in ("rotary_emb_base", "layer_norm_eps", "activation", "attn_bias", "rope_type", "scale_emb"):
        try:
            parse_config(config(**{key: value}))
        except ConfigError as error:
            assert error.field == key and len(str(error)) < 250


@pytest.mark.parametrize(
    "key",
    ["resid_dropout", "embd_pdrop", "lora_dropout", "attn_layerdrop", "initializer_range", "norm_init",
     "attention_init_std", "attn_impl", "_attn_implementation_internal", "use_flash_attention_3",
     "fused_rms_norm", "use_sdpa_attention"],
)  # fmt: skip
def test_training_and_kernels_are_no_mathematics(key):
    assert silently(**{key: 0.1}) == parse_config(config())


@pytest.mark.parametrize("key", ["rope_init_kind", "attn_temperature", "norm_after", "attention_sinks"])
def test_what_sounds_like_mathematics_is_refused(key):
    with pytest.raises(ConfigError, match=f"^{key}=.*unknown to jbatch"):
        parse_config(config(**{key: 0.1}))
