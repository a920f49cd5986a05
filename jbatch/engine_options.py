"""The fields of EngineConfig as keyword arguments, for completion and type checkers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Literal, TypedDict, TypeVar

from jbatch.config import (
    AdmissionName,
    BackendName,
    EngineConfig,
    GenerationConfigName,
    LogprobsMode,
    ModeName,
    PolicyName,
    SamplerName,
)

Class = TypeVar("Class", bound=type)


class EngineOptions(TypedDict, total=False):
    """See EngineConfig, whose fields these are."""

    dtype: str
    load_format: Literal["auto", "dummy"]
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    target_itl_ms: float | None
    page_size: int
    num_pages: int | None
    kv_cache_memory_bytes: int | str | None
    gpu_memory_utilization: float
    mode: ModeName
    batch_wait_timeout_s: float
    policy: PolicyName
    admission: AdmissionName
    max_preemption_probability: float
    tuned: str | None
    predictor: str | None
    seed: int
    generation_config: GenerationConfigName
    device: Literal["auto", "cpu", "cuda"]
    tensor_parallel_size: int
    data_parallel_size: int
    attention_backend: BackendName
    enable_prefix_caching: bool
    num_decode_steps: int
    overlap: bool
    decode_buckets: Sequence[int] | None
    token_buckets: Sequence[int] | None
    logprobs_mode: LogprobsMode
    samplers: Sequence[SamplerName] | None
    compilation_cache_dir: str | None
    show_progress: bool


def with_options_shown(cls: Class) -> Class:
    """Have `help` and completion name each option that `**options` of a class' constructor takes."""
    shown = inspect.signature(cls)
    plain = [each for each in shown.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in dataclasses.fields(EngineConfig)
    ]
    # mypy knows no such attribute of a class
    setattr(cls, "__signature__", shown.replace(parameters=[*plain, *options]))  # noqa: B010
    return cls
