"""Write a tiny Hugging Face model directory with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import weights
from jbatch.device.model import abstract_params
from jbatch.model_dir.config_json import parse_config

TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def tiny(**overrides: Any) -> dict[str, Any]:
    """The contents of a tiny config.json, some of them replaced."""
    return {**TINY, **overrides}


def random_params(config: Mapping[str, Any], seed: int = 0, scale: float = 0.15) -> dict[str, np.ndarray]:
    """Parameters of the model that `config` describes; norms and biases are random too, so that a
    parameter in the wrong place shows."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, leaf in abstract_params(parse_config(config)).items():
        center = 1.0 if name.endswith(".scale") else 0.0
        params[name] = (center + scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
    return params


def write_checkpoint(
    model_dir: Path, config: Mapping[str, Any] = TINY, *, seed: int = 0, shards: int = 1
) -> dict[str, np.ndarray]:
    """Write config.json and safetensors (with an index where `shards` > 1); returns the parameters."""
    params = random_params(config, seed)
    model_dir.mkdir(parents=True, exist_ok=True)
    (model_dir / "config.json").write_text(json.dumps(dict(config)))
    write_tensors(model_dir, weights.to_hugging_face(params), shards)
    return params


def write_tensors(model_dir: Path, tensors: Mapping[str, np.ndarray], shards: int = 1) -> None:
    """Write tensors under Hugging Face's names as one file, or as shards with an index."""
    if shards == 1:
        save_file(dict(tensors), model_dir / "model.safetensors")
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = sorted(tensors)[shard::shards]
        save_file({name: tensors[name] for name in names}, model_dir / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
