"""The shapes of public models, by the names that reports use."""

from __future__ import annotations

from typing import NamedTuple

from jbatch.config import ModelConfig, RopeConfig


class Shape(NamedTuple):
    """What a model's config.json says of its size."""

    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    tie_word_embeddings: bool = False


SHAPES = {
    "llama2-7b": Shape(32, 4096, 11008, 32, 32, 128, 32000, 1e4),
    "llama3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, 5e5),
    "llama3-70b": Shape(80, 8192, 28672, 64, 8, 128, 128256, 5e5),
    "llama3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256, 5e5, True),
    "llama3.2-3b": Shape(28, 3072, 8192, 24, 8, 128, 128256, 5e5, True),
}


def model_config(name: str, num_layers: int, max_model_len: int) -> ModelConfig:
    """The model of that shape, with fewer layers."""
    shape = SHAPES[name]._asdict() | {"num_layers": num_layers}
    rope = RopeConfig(theta=shape.pop("rope_theta"))
    return ModelConfig(**shape, rope=rope, max_position_embeddings=max_model_len)
