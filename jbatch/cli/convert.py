"""Convert a Hugging Face model directory once, so that later starts read checked, ready-made weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax

from jbatch.config import DTYPES, EngineConfig, check_choice
from jbatch.device.model import abstract_params
from jbatch.device.platform import prepare_jax
from jbatch.model_dir.config_json import load_config
from weights import load, save


def convert_model(model_dir: Path, out_dir: Path, dtype: str = "auto") -> None:
    """Write `out_dir`: an Orbax checkpoint, the config and tokenizer files, and a sha256 manifest.

    Raises:
      ConfigError: for a model that jbatch refuses, naming the field.
      weights.WeightsError: for weights that do not fit, naming the tensor, or an `out_dir` that is not empty.
    """
    check_choice("dtype", dtype, ("auto", *DTYPES))
    config = load_config(model_dir)
    replaced = {}
    if dtype != "auto":
        config = dataclasses.replace(config, dtype=dtype)
        replaced["config.json"] = _with_dtype(model_dir / "config.json", dtype)
    prepare_jax(EngineConfig(device="cpu", compilation_cache_dir=None))  # a GPU's memory is not needed
    with jax.default_device(jax.devices("cpu")[0]):
        params = load(model_dir, abstract_params(config))
        save(out_dir, params, model_dir, replaced)


def _with_dtype(path: Path, dtype: str) -> str:
    """A config.json, with the type that the weights now have."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("torch_dtype", None)
    return json.dumps({**content, "dtype": dtype}, indent=2) + "\n"
