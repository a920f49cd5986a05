"""The shapes of public models, by the names that reports use, and directories to plan and run them from."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from jbatch.config import ModelConfig, RopeConfig
from jbatch.errors import ConfigError


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
    context_len: int = 8192


SHAPES = {
    "llama2-7b": Shape(32, 4096, 11008, 32, 32, 128, 32000, 1e4, context_len=4096),
    "llama3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, 5e5),
    "llama3-70b": Shape(80, 8192, 28672, 64, 8, 128, 128256, 5e5),
    "llama3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256, 5e5, True),
    "llama3.2-3b": Shape(28, 3072, 8192, 24, 8, 128, 128256, 5e5, True),
}
# A model so small that a step shows the host's cost and not the device's; nobody has published it.
RUNNABLE = SHAPES | {"150m": Shape(16, 768, 2048, 12, 4, 64, 32000, 1e4)}


def model_config(name: str, num_layers: int, max_model_len: int) -> ModelConfig:
    """The configuration of a model of that shape, with fewer layers."""
    shape = RUNNABLE[name]._asdict() | {"num_layers": num_layers}
    rope = RopeConfig(theta=shape.pop("rope_theta"))
    del shape["context_len"]
    return ModelConfig(**shape, rope=rope, max_position_embeddings=max_model_len)


def config_json(name: str) -> dict[str, object]:
    """The contents of a config.json of that shape: bfloat16, without end-of-sequence ids."""
    shape = RUNNABLE[name]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.embed_dim,
        "intermediate_size": shape.mlp_dim,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": shape.vocab_size,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "max_position_embeddings": shape.context_len,
        "torch_dtype": "bfloat16",
    }


def shape_dir(name: str) -> Path:
    """A directory with the config.json of a shape and no weights. It is gone when the process ends."""
    path = Path(_scratch().name) / name
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config_json(name), indent=1) + "\n")
    return path


def find_shape(path: Path) -> Path:
    """A model's directory as it is; where there is none of that name, the directory of the shape.

    Raises ConfigError for a name that is neither.
    """
    name = str(path)
    if path.exists() or os.sep in name or name.startswith("~"):
        return path
    if name not in RUNNABLE:
        raise ConfigError("model", name, f"no such directory, and none of the shapes {', '.join(RUNNABLE)}")
    return shape_dir(name)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """The process' one folder for model directories; it removes itself."""
    return tempfile.TemporaryDirectory(prefix="jbatch-shapes-")
