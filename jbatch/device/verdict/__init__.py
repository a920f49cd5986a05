"""What `attention_backend="auto"` means on a GPU: kernels that have proven themselves there.

Before this process opens CUDA, another one checks each kernel that claims the engine's problems, fastest
first, against plain JAX. So a kernel that is wrong, crashes or hangs costs that process and a line of text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jbatch.config import EngineConfig, ModelConfig
from jbatch.device.backend import Proven, problems_of, rotation_of
from jbatch.device.verdict import gpus, kept
from jbatch.device.verdict.ask import check_kernels
from jbatch.device.verdict.record import Kernel, Verdict
from jbatch.device.verdict.request import Request
from jbatch.model_dir.resolve import resolve_dtype
from jbatch.progress import progress_bar, say
from jbatch.seam.bucket import buckets_of
from jbatch.seam.shape import StateShape
from pallas_kernels.implementations import compute_capability, declines
from pallas_kernels.names import COMPILERS
from pallas_kernels.problem import Problem


def prove_kernels(config: EngineConfig, model: ModelConfig, max_model_len: int) -> Verdict | None:
    """Check the kernels that an engine may use, or find the verdict that is kept. To be called before CUDA is
    opened; where it is open already, a kernel that finds too little memory left is not checked.

    Returns:
      None where there is nothing to check: no GPU, the user's own choice, or a model that no kernel takes.
    """
    request = _request(config, model, max_model_len)
    if request is None:
        return None

    def make() -> Verdict:
        with progress_bar("checking attention kernels", enabled=config.show_progress):
            verdict = check_kernels(request)
        say(verdict.describe(), enabled=config.show_progress)
        return verdict

    described = gpus.describe_all()
    if described is None:  # nobody could tell for what it holds
        return make()
    return kept.read_or_make(kept.Key.here(described, request.problems), directory_of(config), make)


def kept_verdict(config: EngineConfig, model: ModelConfig, max_model_len: int) -> Verdict | None:
    """The verdict that an engine would find; nothing is checked."""
    request = _request(config, model, max_model_len)
    described = None if request is None else gpus.describe_all()
    if request is None or described is None:
        return None
    return kept.read(kept.Key.here(described, request.problems), directory_of(config))


def proven_on(device: Any, verdict: Verdict | None) -> Proven:
    """The compilers whose kernels passed, by op, if it was on such a device that they did."""
    if verdict is None or verdict.gpu is None:
        return {}
    here = (device.device_kind, compute_capability(device))
    return verdict.proven if verdict.gpu[:2] == here else {}


def directory_of(config: EngineConfig) -> Path | None:
    """Where verdicts are kept; None where they are not."""
    if config.compilation_cache_dir is None:
        return None
    try:
        return Path(config.compilation_cache_dir).expanduser() / "kernels"
    except RuntimeError:  # no home directory
        return None


def _request(config: EngineConfig, model: ModelConfig, max_model_len: int) -> Request | None:
    if config.attention_backend != "auto" or config.device == "cpu" or not gpus.may_be_used():
        return None
    problems = problems_to_check(config, resolve_dtype(config, model, "cuda"), max_model_len)
    kernels = tuple(
        Kernel(name, kind)
        for kind in dict.fromkeys(problem.kind for problem in problems)
        for name in COMPILERS
        if all(declines(name, problem) is None for problem in problems if problem.kind == kind)
    )
    return Request(kernels, problems) if kernels else None


def problems_to_check(config: EngineConfig, model: ModelConfig, max_model_len: int) -> tuple[Problem, ...]:
    """Of each op, those of an engine's smallest and its largest step."""
    shape = StateShape(config.max_num_seqs, 2, config.page_size, -(-max_model_len // config.page_size))
    buckets = buckets_of(config, max_model_len)
    model = model.split(config.tensor_parallel_size)  # each device's part
    found = [p for bucket in buckets for p in problems_of(model, shape, bucket)]
    found += [rotation_of(model, shape, bucket) for bucket in buckets]
    chosen: list[Problem] = []
    for kind in sorted({problem.kind for problem in found}):
        by_size = sorted(
            (problem for problem in found if problem.kind == kind), key=lambda p: (p.tokens, p.slots)
        )
        chosen += dict.fromkeys((by_size[0], by_size[-1]))
    return tuple(chosen)
