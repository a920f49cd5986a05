from __future__ import annotations

import numpy as np
import pytest

import weights
from weights import names


def test_qkv_is_grouped_by_kv_head():
    kv_heads, group, head_dim, embed = 2, 3, 4, 5
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((kv_heads, group + 2, head_dim, embed))
    tensors = weights.to_hugging_face({"layers.7.attention.qkv": qkv})
    q = tensors["model.layers.7.self_attn.q_proj.weight"].reshape(kv_heads * group, head_dim, embed)
    k = tensors["model.layers.7.self_attn.k_proj.weight"].reshape(kv_heads, head_dim, embed)
    v = tensors["model.layers.7.self_attn.v_proj.weight"].reshape(kv_heads, head_dim, embed)
    for kv_head in range(kv_heads):
        for g in range(group):
            assert np.array_equal(q[kv_head * group + g], qkv[kv_head, g])
        assert np.array_equal(k[kv_head], qkv[kv_head, group])
        assert np.array_equal(v[kv_head], qkv[kv_head, group + 1])


def test_qkv_bias_and_gate_up():
    bias = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    tensors = weights.to_hugging_face({"layers.0.attention.qkv_bias": bias})
    assert tensors["model.layers.0.self_attn.q_proj.bias"].tolist() == bias[:, :2].reshape(-1).tolist()
    assert tensors["model.layers.0.self_attn.v_proj.bias"].tolist() == bias[:, 3].reshape(-1).tolist()
    gate_up = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    tensors = weights.to_hugging_face({"layers.0.mlp.gate_up": gate_up})
    assert np.array_equal(tensors["model.layers.0.mlp.gate_proj.weight"], gate_up[0])
    assert np.array_equal(tensors["model.layers.0.mlp.up_proj.weight"], gate_up[1])


def test_names_outside_layers_and_norms():
    table = {
        "embedding": "model.embed_tokens.weight",
        "norm.scale": "model.norm.weight",
        "unembedding": "lm_head.weight",
        "layers.3.attention_norm.scale": "model.layers.3.input_layernorm.weight",
        "layers.3.mlp_norm.scale": "model.layers.3.post_attention_layernorm.weight",
        "layers.3.attention.q_norm.scale": "model.layers.3.self_attn.q_norm.weight",
        "layers.3.attention.k_norm.scale": "model.layers.3.self_attn.k_norm.weight",
        "layers.3.mlp.down": "model.layers.3.mlp.down_proj.weight",
        "layers.3.mlp.down_bias": "model.layers.3.mlp.down_proj.bias",
        "layers.3.attention.o_bias": "model.layers.3.self_attn.o_proj.bias",
    }
    for ours, theirs in table.items():
        assert [part.name for part in names.parts(ours, (4, 6))] == [theirs]
    assert names.parts("layers.0.attention.o", (6, 2, 4))[0].shape == (6, 8)


@pytest.mark.parametrize(
    "name", ["", "embed", "layers.x.mlp.down", "layers.0.mlp", "layers.0.mlp.down.x", "\u0663"]
)
def test_an_unknown_parameter_is_named(name):
    with pytest.raises(weights.WeightsError, match="has no Hugging Face name"):
        names.parts(name, (2, 2))
