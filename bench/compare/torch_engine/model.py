"""The LLaMA of jbatch/device/model.py in PyTorch, on the same parameters: equal shapes and precision.

A layer is two functions, before and after attention. Each runs for every layer with other tensors of the
same shapes, so that `torch.compile` compiles it once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from jbatch.config import ModelConfig


class Layer(NamedTuple):
    """One block's parameters, as matrices."""

    attention_norm: Tensor
    qkv: Float[Tensor, "rows embed"]
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Float[Tensor, "embed heads_x_dim"]
    o_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Float[Tensor, "two_x_mlp embed"]
    gate_up_bias: Tensor | None
    down: Float[Tensor, "embed mlp"]
    down_bias: Tensor | None


class Sizes(NamedTuple):
    """What the functions of a layer are specialised on."""

    num_heads: int
    kv_heads: int
    head_dim: int
    eps: float


class Llama(NamedTuple):
    """All parameters, which may be shared with JAX: nothing here writes to them."""

    sizes: Sizes
    embedding: Float[Tensor, "vocab embed"]
    layers: tuple[Layer, ...]
    norm: Tensor
    unembedding: Float[Tensor, "vocab embed"]
    frequencies: Float[Tensor, " half"]
    rotary_scale: float


def from_jax(params: Mapping[str, Any]) -> dict[str, Tensor]:
    """JAX arrays as tensors on the same device, which share their memory. They must not be deleted while a
    tensor is in use."""
    return {name: torch.from_dlpack(array) for name, array in params.items()}


def build(config: ModelConfig, params: Mapping[str, Tensor], frequencies: Tensor) -> Llama:
    """The model over jbatch's parameters, by the names of `jbatch.device.model.abstract_params`.

    Args:
      frequencies: of `jbatch.device.rotary.frequencies`.
    """
    layers = []
    for idx in range(config.num_layers):
        found = {
            name.removeprefix(f"layers.{idx}."): tensor
            for name, tensor in params.items()
            if name.startswith(f"layers.{idx}.")
        }
        layers.append(_layer(found))
    embedding = params["embedding"]
    scale = config.rope.attention_factor if config.rope.kind == "yarn" else 1.0
    return Llama(
        Sizes(config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps),
        embedding,
        tuple(layers),
        params["norm.scale"],
        params.get("unembedding", embedding),
        frequencies.to(embedding.device),
        scale,
    )


def _layer(found: dict[str, Tensor]) -> Layer:
    def matrix(name: str, rows: int) -> Tensor:
        """The first `rows` axes as one, and the others as one."""
        shape = found[name].shape
        return found[name].reshape(math.prod(shape[:rows]), -1)

    def bias(name: str) -> Tensor | None:
        return found[name].reshape(-1) if name in found else None

    return Layer(
        found["attention_norm.scale"],
        matrix("attention.qkv", 3),
        bias("attention.qkv_bias"),
        bias("attention.q_norm.scale"),
        bias("attention.k_norm.scale"),
        matrix("attention.o", 1),
        bias("attention.o_bias"),
        found["mlp_norm.scale"],
        matrix("mlp.gate_up", 2),
        bias("mlp.gate_up_bias"),
        found["mlp.down"],
        bias("mlp.down_bias"),
    )


def cos_sin(
    llama: Llama, positions: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, "tokens half"], Float[Tensor, "tokens half"]]:
    """The rotation of each position, float32."""
    angles = positions[:, None].float() * llama.frequencies
    return angles.cos() * llama.rotary_scale, angles.sin() * llama.rotary_scale


def before_attention(
    layer: Layer,
    sizes: Sizes,
    x: Float[Tensor, "tokens embed"],
    cos: Float[Tensor, "tokens half"],
    sin: Float[Tensor, "tokens half"],
) -> tuple[Float[Tensor, "tokens heads head_dim"], Float[Tensor, "tokens 2 kv_heads head_dim"]]:
    """Queries, and keys and values as the cache holds them."""
    num_heads, kv_heads, head_dim, eps = sizes
    normed = rms_norm(x, layer.attention_norm, eps)
    qkv = functional.linear(normed, layer.qkv, layer.qkv_bias).view(len(x), kv_heads, -1, head_dim)
    q = qkv[:, :, :-2].reshape(len(x), num_heads, head_dim)
    k, v = qkv[:, :, -2], qkv[:, :, -1]
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = rms_norm(q, layer.q_norm, eps), rms_norm(k, layer.k_norm, eps)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return q, torch.stack((k, v), dim=1)


def after_attention(
    layer: Layer, sizes: Sizes, x: Float[Tensor, "tokens embed"], attended: Float[Tensor, "tokens heads dim"]
) -> Float[Tensor, "tokens embed"]:
    """The block's output."""
    x = x + functional.linear(attended.reshape(len(x), -1), layer.o, layer.o_bias)
    normed = rms_norm(x, layer.mlp_norm, sizes.eps)
    gate, up = functional.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
    return x + functional.linear(functional.silu(gate) * up, layer.down, layer.down_bias)


def logits(llama: Llama, hidden: Float[Tensor, "slots embed"]) -> Float[Tensor, "slots vocab"]:
    """Float32, whatever the weights are."""
    if hidden.dtype == torch.float32:
        return hidden @ llama.unembedding.T
    if hidden.is_cuda:
        return torch.mm(hidden, llama.unembedding.T, out_dtype=torch.float32)
    return hidden.float() @ llama.unembedding.T.float()


def rms_norm(x: Float[Tensor, "*n dim"], scale: Float[Tensor, " dim"], eps: float) -> Float[Tensor, "*n dim"]:
    x32 = x.float()
    normed = x32 * torch.rsqrt((x32 * x32).mean(dim=-1, keepdim=True) + eps)
    return (normed * scale.float()).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2); float32 inside."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
