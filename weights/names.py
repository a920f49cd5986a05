"""The one name table: which Hugging Face tensors each parameter is made of, and how they fit together.

Shapes alone say how many heads there are, so nothing here needs a model configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from weights.errors import WeightsError

_LAYER = re.compile(r"layers\.(\d+)\.(.+)", re.ASCII)
_OUTSIDE_LAYERS = {
    "embedding": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding": "lm_head.weight",
}
_INSIDE_LAYERS = {
    "attention.qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.qkv_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attention.o": ("self_attn.o_proj.weight",),
    "attention.o_bias": ("self_attn.o_proj.bias",),
    "attention.q_norm.scale": ("self_attn.q_norm.weight",),
    "attention.k_norm.scale": ("self_attn.k_norm.weight",),
    "attention_norm.scale": ("input_layernorm.weight",),
    "mlp_norm.scale": ("post_attention_layernorm.weight",),
    "mlp.gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.gate_up_bias": ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
    "mlp.down": ("mlp.down_proj.weight",),
    "mlp.down_bias": ("mlp.down_proj.bias",),
}

IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")  # a constant that old checkpoints carry along


class Part(NamedTuple):
    """A Hugging Face tensor, and the part of the parameter that it fills."""

    name: str
    shape: tuple[int, ...]  # as stored
    where: tuple[slice | int, ...]  # parameter[where], reshaped to `shape`, holds it


def parts(name: str, shape: tuple[int, ...]) -> list[Part]:
    """The Hugging Face tensors that make up parameter `name` of `shape`. Raises WeightsError for a
    name that is not in the table."""
    tensors = _tensor_names(name)
    everything = (slice(None),)
    if name.endswith(("attention.qkv", "attention.qkv_bias")):
        kv_heads, group_plus_2, head_dim, *embed = shape  # q heads of a KV head, then its k, then its v
        q_rows, kv_rows = kv_heads * (group_plus_2 - 2) * head_dim, kv_heads * head_dim
        slots = [slice(0, -2), slice(-2, -1), slice(-1, None)]
        rows = [q_rows, kv_rows, kv_rows]
        return [Part(t, (n, *embed), (slice(None), i)) for t, n, i in zip(tensors, rows, slots, strict=True)]
    if name.endswith(("mlp.gate_up", "mlp.gate_up_bias")):
        return [Part(t, shape[1:], (i,)) for i, t in enumerate(tensors)]
    if name.endswith("attention.o"):
        embed_dim, heads, head_dim = shape
        return [Part(tensors[0], (embed_dim, heads * head_dim), everything)]
    return [Part(tensors[0], shape, everything)]


def to_hugging_face(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights under Hugging Face's names, each tensor contiguous, to be written as safetensors."""
    return {
        part.name: np.ascontiguousarray(np.asarray(value)[part.where]).reshape(part.shape)
        for name, value in params.items()
        for part in parts(name, value.shape)
    }


def _tensor_names(name: str) -> tuple[str, ...]:
    if name in _OUTSIDE_LAYERS:
        return (_OUTSIDE_LAYERS[name],)
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _INSIDE_LAYERS:
        raise WeightsError(f"parameter {name!r} has no Hugging Face name")
    return tuple(f"model.layers.{match[1]}.{tensor}" for tensor in _INSIDE_LAYERS[match[2]])
