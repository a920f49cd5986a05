"""Convert a Hugging Face model directory once, so that later starts read checked, ready-made weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import weights
from jbatch.config import DTYPES, check_choice
from jbatch.config_json import load_config
from jbatch.model import abstract_params


def convert_model(model_dir: Path, out_dir: Path, dtype: str = "auto") -> None:
    """Write `out_dir`: an Orbax checkpoint, the config and tokenizer files, and a sha256 manifest.

    Raises:
      ConfigError: for a model that jbatch refuses, naming the field.
      weights.WeightsError: for weights that do not fit, naming the tensor, or an `out_dir` that is not empty.
    """
    check_choice("dtype", dtype, ("auto", *DTYPES))
    config = load_config(model_dir)
    if dtype != "auto":
        config = dataclasses.replace(config, dtype=dtype)
    weights.save(out_dir, weights.load(model_dir, abstract_params(config)), model_dir)
