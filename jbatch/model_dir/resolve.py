"""What an engine's options mean for a model: its dtype and its context."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jbatch.config import EngineConfig, ModelConfig
from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import load_config


def resolve_model(model: str | Path, config: EngineConfig) -> ModelConfig:
    """The configuration of the model in a directory, in the dtype that `config` names; for "auto" in that of
    config.json, until `resolve_dtype` knows the device.

    Raises:
      ConfigError: for what is no model directory, for a config.json that jbatch refuses, and for a
        `tensor_parallel_size` that does not fit the model.
    """
    model_config = load_config(model)
    model_config.split(config.tensor_parallel_size)  # or it is refused
    if config.dtype == "auto":
        return model_config
    return dataclasses.replace(model_config, dtype=config.dtype)


def resolve_dtype(config: EngineConfig, model: ModelConfig, platform: str) -> ModelConfig:
    """The model in the dtype that "auto" means on a platform of JAX's: what config.json says, on a CPU
    float32, as each step in another dtype would convert all weights."""
    if config.dtype == "auto" and platform == "cpu":
        return dataclasses.replace(model, dtype="float32")
    return model


def resolve_max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """How many tokens a prompt and its output may have. Raises ConfigError for more than the model serves."""
    max_model_len = config.max_model_len or model.context_len
    longest = model.max_context_len
    if max_model_len > longest:
        raise ConfigError("max_model_len", max_model_len, f"must be at most {longest}, the model's context")
    model.check_context(max_model_len)
    return max_model_len
