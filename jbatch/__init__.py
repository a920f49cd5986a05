"""jbatch: continuous batching for LLaMA inference in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers see; at run time it is loaded when it is used
    from jbatch.config import EngineConfig, ModelConfig
    from jbatch.device.process.user_fn import LogitsState
    from jbatch.engine.engine import Engine
    from jbatch.engine.prefilled import Prefilled
    from jbatch.engine.scoring import Score
    from jbatch.engine.stream import TextDelta
    from jbatch.errors import ConfigError, JBatchError, RequestError
    from jbatch.llm import LLM
    from jbatch.outputs import FinishReason, Logprob, RequestOutput
    from jbatch.sampling_params import SamplingParams

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

__all__ = [
    "LLM",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "FinishReason",
    "JBatchError",
    "LogitsState",
    "Logprob",
    "ModelConfig",
    "Prefilled",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "Score",
    "TextDelta",
]


def __getattr__(
    name: str,
) -> object:  # lazy (PEP 562): options of the device must be set before jax is imported
    if name == "__version__":
        return importlib.import_module("jbatch.distribution").version()
    if name not in _EXPORTS:
        nearest = importlib.import_module("jbatch.names_elsewhere").nearest_name(name, __all__)
        hint = f"it has {', '.join(__all__)}" if nearest is None else f"did you mean {nearest!r}?"
        raise AttributeError(f"module 'jbatch' has no attribute {name!r}; {hint}", name=name)
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:  # for completion: what was not used yet is there, too
    return [*__all__, "__version__"]
