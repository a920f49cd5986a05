"""Load whichever kind of model directory it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from weights.hugging_face import Form, check_hugging_face, load_hugging_face
from weights.manifest import is_checkpoint


def load(
    model_dir: str | Path,
    like: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, Any] | None = None,
    forms: Mapping[str, Form] | None = None,
) -> dict[str, jax.Array]:
    """The parameters named by `like`, in its order, shapes and dtypes, on the device: from converted
    weights where the directory has a manifest, from safetensors otherwise.

    Args:
      like: parameter name -> shape and dtype, and the sharding where `shardings` names none.
      shardings: parameter name -> sharding.
      forms: parameter name -> a function from the parameter, on the host, to the form that is kept of it.
    Raises:
      WeightsError: anything damaged, missing, unexpected, or of another shape; it names file or tensor.
    """
    if is_checkpoint(model_dir):
        from weights.checkpoint import load_checkpoint  # Orbax takes a second to import

        return load_checkpoint(model_dir, like, shardings, forms)
    return load_hugging_face(model_dir, like, shardings, forms)


def check(model_dir: str | Path, like: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raise WeightsError for whatever would keep `load` from loading; reads no tensor."""
    if is_checkpoint(model_dir):
        from weights.checkpoint import check_checkpoint

        check_checkpoint(model_dir, like)
    else:
        check_hugging_face(model_dir, like)
