"""The models that benches know by name: shapes with random weights, and the demo model."""

from __future__ import annotations

from pathlib import Path

from jbatch.errors import ConfigError
from jbatch.model_dir.shapes import RUNNABLE, shape_dir

DEMO = "demo"  # the small trained model that comes with jbatch: the only one here with weights
DEMO_DIR = Path(__file__).resolve().parents[2] / "weights" / "demo"
MODEL_NAMES = (*RUNNABLE, DEMO)


def model_dir(name: str) -> Path:
    """A model directory: of a shape, for `LLM(model_dir(name), load_format="dummy")`, gone when the process
    ends; of "demo", the one with weights.

    Raises:
      ConfigError: for an unknown name.
    """
    if name == DEMO:
        return DEMO_DIR
    if name not in RUNNABLE:
        raise ConfigError("model", name, f"must be a model directory or one of {', '.join(MODEL_NAMES)}")
    return shape_dir(name)
