"""jbatch: continuous batching for LLaMA inference in JAX."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "ConfigError": "jbatch.errors",
    "Engine": "jbatch.engine.engine",
    "EngineConfig": "jbatch.config",
    "FinishReason": "jbatch.outputs",
    "JBatchError": "jbatch.errors",
    "LLM": "jbatch.llm",
    "LogitsState": "jbatch.device.process.user_fn",
    "Logprob": "jbatch.outputs",
    "ModelConfig": "jbatch.config",
    "Prefilled": "jbatch.engine.prefilled",
    "RequestError": "jbatch.errors",
    "RequestOutput": "jbatch.outputs",
    "SamplingParams": "jbatch.sampling_params",
    "Score": "jbatch.engine.scoring",
    "TextDelta": "jbatch.engine.stream",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:  # lazy (PEP 562): options of the device must be set before jax is imported
    if name == "__version__":
        return importlib.import_module("jbatch.distribution").version()
    if name not in _EXPORTS:
        raise AttributeError(f"module 'jbatch' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
