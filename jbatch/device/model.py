"""The Flax LLaMA, top to bottom.

The model knows nothing of pages or batches: it maps tokens and positions to hidden states and calls
`attend(layer_idx, qkv, cos, sin)` for attention, so that a paged step, a training loop and a hook share it.
Weights keep Hugging Face's [out, in] orientation, with qkv grouped by KV head and gate-up stacked.
On several devices each has a part of the model (`ModelConfig.split`) and sums or joins what the parts make.
"""

from __future__ import annotations

import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jbatch.config import ModelConfig
from jbatch.device import rotary
from jbatch.device.project import project
from jbatch.device.ranks import ALONE, Ranks


@runtime_checkable  # the tests check types, too
class Attend(Protocol):
    """Causal attention of one layer: scaled by head_dim ** -0.5, and whatever cache it keeps.

    `qkv` holds for each KV head its queries, then its key, then its value. Queries and keys are to be rotated
    first: `pallas_kernels.rotated` does that, and takes the three apart.
    """

    def __call__(
        self,
        layer_idx: int,
        qkv: Float[Array, "*tokens kv_heads rows head_dim"],
        cos: Float[Array, "*tokens half"],
        sin: Float[Array, "*tokens half"],
    ) -> Float[Array, "*tokens heads head_dim"]: ...


def _param(*shape: int, dtype: str) -> nnx.Param:
    # Only ever traced, by `nnx.eval_shape`: the values come from weights/.
    return nnx.Param(jnp.zeros(shape, dtype))


class RMSNorm(nnx.Module):
    """Zhang & Sennrich 2019; float32 inside."""

    def __init__(self, dim: int, config: ModelConfig):
        self.eps = config.rms_norm_eps
        self.scale = _param(dim, dtype=config.dtype)

    def __call__(self, x: Float[Array, "*n dim"]) -> Float[Array, "*n dim"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023) with fused q, k and v projections."""

    def __init__(self, config: ModelConfig, ranks: Ranks):
        self.config, self.ranks = config, ranks
        kv_heads, group, head_dim = config.num_kv_heads, config.group, config.head_dim
        self.qkv = _param(kv_heads, group + 2, head_dim, config.embed_dim, dtype=config.dtype)
        self.o = _param(config.embed_dim, config.num_heads, head_dim, dtype=config.dtype)
        self.qkv_bias = _param(kv_heads, group + 2, head_dim, dtype=config.dtype) if config.qkv_bias else None
        self.o_bias = _param(config.embed_dim, dtype=config.dtype) if config.o_bias else None
        self.q_norm = RMSNorm(head_dim, config) if config.qk_norm else None
        self.k_norm = RMSNorm(head_dim, config) if config.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "*tokens embed"],
        cos: Float[Array, "*tokens half"],
        sin: Float[Array, "*tokens half"],
        layer_idx: int,
        attend: Attend,
    ) -> Float[Array, "*tokens embed"]:
        qkv = project(x, self.qkv[...], num_out=3)
        if self.qkv_bias is not None:
            qkv = qkv + self.qkv_bias[...]
        if self.q_norm is not None and self.k_norm is not None:
            q, k, v = jnp.split(qkv, (self.config.group, self.config.group + 1), axis=-2)
            qkv = jnp.concatenate([self.q_norm(q), self.k_norm(k), v], axis=-2)
        out = self.ranks.sum(project(attend(layer_idx, qkv, cos, sin), self.o[...], num_out=1))
        return out if self.o_bias is None else out + self.o_bias[...]


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020) with fused gate and up projections."""

    def __init__(self, config: ModelConfig, ranks: Ranks):
        self.ranks = ranks
        self.gate_up = _param(2, config.mlp_dim, config.embed_dim, dtype=config.dtype)
        self.down = _param(config.embed_dim, config.mlp_dim, dtype=config.dtype)
        self.gate_up_bias = _param(2, config.mlp_dim, dtype=config.dtype) if config.mlp_bias else None
        self.down_bias = _param(config.embed_dim, dtype=config.dtype) if config.mlp_bias else None

    def __call__(self, x: Float[Array, "*tokens embed"]) -> Float[Array, "*tokens embed"]:
        gate_up = project(x, self.gate_up[...], num_out=2)
        if self.gate_up_bias is not None:
            gate_up = gate_up + self.gate_up_bias[...]
        hidden = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
        out = self.ranks.sum(project(hidden, self.down[...], num_out=1))
        return out if self.down_bias is None else out + self.down_bias[...]


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ModelConfig, ranks: Ranks):
        self.attention_norm = RMSNorm(config.embed_dim, config)
        self.attention = Attention(config, ranks)
        self.mlp_norm = RMSNorm(config.embed_dim, config)
        self.mlp = MLP(config, ranks)

    def __call__(
        self,
        x: Float[Array, "*tokens embed"],
        cos: Float[Array, "*tokens half"],
        sin: Float[Array, "*tokens half"],
        layer_idx: int,
        attend: Attend,
    ) -> Float[Array, "*tokens embed"]:
        x = x + self.attention(self.attention_norm(x), cos, sin, layer_idx, attend)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nnx.Module):
    """A LLaMA (Touvron et al. 2023), and what is one up to a flag: Mistral, Qwen2, Qwen3."""

    def __init__(self, config: ModelConfig, ranks: Ranks = ALONE):
        self.vocab_size, self.ranks = config.vocab_size, ranks
        self.config = config = config.split(ranks.size)
        self.embedding = _param(config.vocab_size, config.embed_dim, dtype=config.dtype)
        self.layers = nnx.List([Block(config, ranks) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.embed_dim, config)
        tied = config.tie_word_embeddings
        self.unembedding = None if tied else _param(config.vocab_size, config.embed_dim, dtype=config.dtype)

    def __call__(
        self, tokens: Int[Array, "*tokens"], positions: Int[Array, "*tokens"], attend: Attend
    ) -> Float[Array, "*tokens embed"]:
        """Final hidden states, normed."""
        cos, sin = rotary.cos_sin(positions, self.config.rope, self.config.head_dim)
        x = self.ranks.look_up(self.embedding[...], tokens)
        for layer_idx, block in enumerate(self.layers):  # unrolled: a scan would copy weights and cache
            x = block(x, cos, sin, layer_idx, attend)
        return self.norm(x)

    def logits(self, hidden: Float[Array, "*n embed"]) -> Float[Array, "*n vocab"]:
        """Unnormalised log-probabilities, float32."""
        unembedding = self.embedding if self.unembedding is None else self.unembedding
        logits = project(hidden, unembedding[...], num_out=1, dtype=jnp.float32)
        return self.ranks.join(logits, self.vocab_size)


def abstract_params(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape and dtype of every parameter, e.g. 'layers.3.attention.qkv', in a fixed order."""
    return {name: jax.ShapeDtypeStruct(p.shape, p.dtype) for name, p in _flat_state(config, ALONE)[1].items()}


def build(config: ModelConfig, params: tuple[jax.Array, ...], ranks: Ranks = ALONE) -> Llama:
    """The model over `params`, which are in `abstract_params` order. Call it inside a jitted function:
    a flat tuple of leaves is the cheapest thing to pass across the jit boundary.

    On several devices, call it where each sees its own part of `params`."""
    graphdef, state = _flat_state(config, ranks)
    paths = [tuple(int(k) if k.isdigit() else k for k in name.split(".")) for name in state]
    leaves = {path: nnx.Param(value) for path, value in zip(paths, params, strict=True)}
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


@functools.cache  # it costs a tenth of what tracing a step does, and each step asks twice
def _flat_state(config: ModelConfig, ranks: Ranks):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(config, ranks)))
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    return graphdef, flat
