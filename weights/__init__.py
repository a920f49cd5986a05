"""Code that fills flat trees of parameters with tensors; it knows names and shapes, never the engine.

Exports load lazily, so that importing this package does not import jax.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "check": "weights.loading",
    "load": "weights.loading",
    "load_hugging_face": "weights.hugging_face",
    "load_checkpoint": "weights.checkpoint",
    "is_checkpoint": "weights.manifest",
    "save": "weights.checkpoint",
    "random": "weights.random_init",
    "to_hugging_face": "weights.names",
    "match": "weights.in_memory",
    "make": "weights.in_memory",
    "Source": "weights.in_memory",
    "WeightsError": "weights.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
