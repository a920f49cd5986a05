"""The Flax model against a LLaMA in float64 NumPy, written out tensor by tensor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import weights
from jbatch.device import model
from jbatch.device.rotary import frequencies
from jbatch.model_dir.config_json import parse_config
from pallas_kernels import rotated
from tests.helpers.hf_checkpoint import random_params, tiny
from tests.helpers.paged import PagedModel

CONFIGS = {
    "grouped heads": {},
    "tied, one KV head": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "biases, wide heads": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "qwen3": {"model_type": "qwen3", "head_dim": 12},
}


class Reference:
    """Log-probabilities by Hugging Face's tensors, one sequence at a time."""

    def __init__(self, raw, params):
        self.config, self.tensors = parse_config(raw), {}
        for name, tensor in weights.to_hugging_face(params).items():
            self.tensors[name.removeprefix("model.")] = np.asarray(tensor, np.float64)

    def linear(self, x, name):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0)

    def norm(self, x, name):
        scale = self.tensors.get(f"{name}.weight")
        if scale is None:  # no q/k norm
            return x
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config.rms_norm_eps) * scale

    def heads(self, x, layer, which):
        x = self.linear(x, f"{layer}.self_attn.{which}_proj").reshape(len(x), -1, self.config.head_dim)
        return x if which == "v" else self.rotated(self.norm(x, f"{layer}.self_attn.{which}_norm"))

    def rotated(self, x):
        half = self.config.head_dim // 2
        turn = np.exp(1j * np.outer(np.arange(len(x)), frequencies(self.config.rope, 2 * half)))[:, None]
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def attention(self, x, layer):
        q, k, v = (self.heads(x, layer, which) for which in "qkv")
        k, v = (np.repeat(t, self.config.group, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(self.config.head_dim)
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        return self.linear(
            np.einsum("hqk,khd->qhd", probs, v).reshape(len(x), -1), f"{layer}.self_attn.o_proj"
        )

    def mlp(self, x, layer):
        gate, up = (self.linear(x, f"{layer}.mlp.{name}_proj") for name in ("gate", "up"))
        return self.linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj")

    def log_probs(self, tokens):
        x = self.tensors["embed_tokens.weight"][tokens]
        for idx in range(self.config.num_layers):
            layer = f"layers.{idx}"
            x = x + self.attention(self.norm(x, f"{layer}.input_layernorm"), layer)
            x = x + self.mlp(self.norm(x, f"{layer}.post_attention_layernorm"), layer)
        tied = self.config.tie_word_embeddings
        logits = self.norm(x, "norm") @ self.tensors["embed_tokens.weight" if tied else "lm_head.weight"].T
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs(name):
    """Prefill in chunks and decode one by one, several sequences at a time, on scattered pages."""
    raw = tiny(**CONFIGS[name])
    params = random_params(raw, seed=1)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 96, length).tolist() for length in (1, 5, 33, 64, 70)]
    paged = PagedModel(parse_config(raw), {k: jnp.asarray(v) for k, v in params.items()}, 80)
    ours = paged.log_probs(sequences, num_prefilled=[1, 5, 20, 64, 47])
    for sequence, our in zip(sequences, ours, strict=True):
        np.testing.assert_allclose(our, Reference(raw, params).log_probs(sequence), atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes(dtype):
    """Weights, activations and cache are of the model's, logits always float32."""
    config = parse_config(tiny(torch_dtype=dtype, attention_bias=True, mlp_bias=True))
    abstract = model.abstract_params(config)
    assert {leaf.dtype for leaf in abstract.values()} == {jnp.dtype(dtype)}
    seen = []

    def forward(params, tokens):
        llama = model.build(config, params)

        def attend(layer_idx, qkv, cos, sin):
            q, k, v = rotated(qkv, cos, sin)
            seen.append((layer_idx, q.dtype, k.dtype, v.dtype))
            return q

        hidden = llama(tokens, jnp.arange(3), attend)
        return hidden, llama.logits(hidden)

    hidden, logits = jax.eval_shape(forward, tuple(abstract.values()), jax.ShapeDtypeStruct((3,), jnp.int32))
    assert (hidden.dtype, logits.dtype, logits.shape) == (dtype, jnp.float32, (3, 96))
    assert seen == [(layer_idx, *[jnp.dtype(dtype)] * 3) for layer_idx in range(2)]


def test_parameters_have_stable_names_and_shapes():
    abstract = model.abstract_params(parse_config(tiny(num_hidden_layers=12)))
    assert abstract["layers.11.attention.qkv"].shape == (2, 4, 8, 32)  # kv_heads, group + 2, head_dim, embed
    assert abstract["layers.0.mlp.gate_up"].shape == (2, 48, 32)
    assert abstract["layers.3.attention.o"].shape == (32, 4, 8)
    assert abstract["embedding"].shape == abstract["unembedding"].shape == (96, 32)
    assert not any("bias" in name or "q_norm" in name for name in abstract)


@pytest.mark.parametrize("flag, name", [("attention_bias", "qkv_bias"), ("mlp_bias", "down_bias")])
def test_flags_add_parameters(flag, name):
    assert f"layers.0.{'attention' if flag == 'attention_bias' else 'mlp'}.{name}" in model.abstract_params(
        parse_config(tiny(**{flag: True}))
    )
    assert "unembedding" not in model.abstract_params(parse_config(tiny(tie_word_embeddings=True)))


def test_parameters_come_in_the_order_of_their_names():
    """`build` takes leaves by position: each must land where its name says, also past layer 9."""
    config = parse_config(tiny(num_hidden_layers=12))
    abstract = model.abstract_params(config)
    leaves = tuple(jnp.full(leaf.shape, idx, leaf.dtype) for idx, leaf in enumerate(abstract.values()))
    llama, order = model.build(config, leaves), list(abstract)
    for layer_idx in range(12):
        value = llama.layers[layer_idx].attention.qkv[...]
        assert value.min() == value.max() == order.index(f"layers.{layer_idx}.attention.qkv")
    assert llama.norm.scale[...][0] == order.index("norm.scale")
