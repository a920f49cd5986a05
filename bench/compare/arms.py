"""The arms of `jbatch bench compare`: jbatch, and PyTorch's on the same device, weights and requests.

PyTorch and transformers are imported only when an arm that needs them is built, so that an arm which cannot
be built takes nobody along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bench.compare.ready import DrivenArm, ForeignArm, ReadyArm, ReplayedArm
from bench.compare.stage import Stage
from jbatch.errors import ConfigError


def _jbatch(stage: Stage) -> DrivenArm:
    return DrivenArm(stage, stage.subject.llm.runner, _about_jbatch(stage))


def _torch_paged(kernel: str) -> Callable[[Stage], ReadyArm]:
    def build(stage: Stage) -> DrivenArm:
        runner = stage.torch_runner(kernel)
        return DrivenArm(stage, runner, runner.describe())

    return build


def _replay_jbatch(stage: Stage) -> ReplayedArm:
    return ReplayedArm(stage, stage.subject.llm.runner, _about_jbatch(stage))


def _replay_torch(stage: Stage) -> ReplayedArm:
    runner = stage.torch_runner("auto")
    return ReplayedArm(stage, runner, runner.describe())


def _hf_generate(stage: Stage) -> ForeignArm:
    from bench.compare import hugging_face

    model = hugging_face.build(stage.model_dir, stage.tensors())
    return ForeignArm(stage, hugging_face.Generate(model, stage.subject.max_num_seqs, stage.workload.items))


def _hf_continuous(stage: Stage) -> ForeignArm:
    from bench.compare import hugging_face

    tensors = stage.tensors()
    embedding = tensors["embedding"]
    attention = hugging_face.best_attention(embedding.device, embedding.dtype)
    model = hugging_face.build(stage.model_dir, tensors, attention)
    shape = stage.shape
    cache_tokens = (shape.num_pages - 1) * shape.page_size
    sizes = (stage.subject.max_num_seqs, cache_tokens, shape.page_size)
    return ForeignArm(stage, hugging_face.Continuous(model, *sizes))


def _about_jbatch(stage: Stage) -> dict[str, Any]:
    runner = stage.subject.llm.runner
    attention = runner.spec.attention
    return {
        "attention": f"{attention.decode} (decode), {attention.prefill} (prefill)",
        "execution": "ahead-of-time compiled steps",
        "device": runner.spec.device.device_kind,
    }


class Arm(NamedTuple):
    """What takes part in a comparison: its name, what it is, and how it is built."""

    name: str
    definition: str
    build: Callable[[Stage], ReadyArm]


SAME_SCHEDULER = (
    "jbatch's scheduler, plans, buckets and cache layout, on a PyTorch executor; prefill attention "
    "is one SDPA call per sequence and layer, uncompiled"
)
REPLAY = "the steps of jbatch's recorded run, without a scheduler, on "
ARMS = {
    arm.name: arm
    for arm in (
        Arm("jbatch", "continuous batching in JAX", _jbatch),
        Arm("torch-paged", SAME_SCHEDULER, _torch_paged("auto")),
        Arm(
            "torch-paged-flash-attn",
            f"{SAME_SCHEDULER}, decoding with FlashAttention 2",
            _torch_paged("flash-attn"),
        ),
        Arm(
            "torch-paged-flash-attn-3",
            f"{SAME_SCHEDULER}, decoding with FlashAttention 3",
            _torch_paged("flash-attn-3"),
        ),
        Arm(
            "torch-paged-mosaic",
            f"{SAME_SCHEDULER}, decoding with this project's Mosaic kernel",
            _torch_paged("mosaic"),
        ),
        Arm(
            "hf-generate",
            "transformers' generate: batches in order of arrival, left-padded, static cache; each runs to "
            "its longest request, and only the tokens that were asked for count",
            _hf_generate,
        ),
        Arm("hf-continuous", "transformers' continuous batching (generate_batch)", _hf_continuous),
        Arm("replay-jbatch", REPLAY + "jbatch's runner", _replay_jbatch),
        Arm("replay-torch", REPLAY + "the PyTorch executor", _replay_torch),
    )
}
GROUPS = {"replay": ("replay-jbatch", "replay-torch")}
REFERENCE = "jbatch"


def choose_arms(names: list[str]) -> list[Arm]:
    """The arms of these names, in the order of ARMS, jbatch among them; all where none is named. Raises
    ConfigError for an unknown name."""
    wanted = {REFERENCE}
    for name in names:
        if name not in ARMS and name not in GROUPS:
            raise ConfigError("arms", name, f"must be one of {', '.join((*ARMS, *GROUPS))}")
        wanted.update(GROUPS.get(name, (name,)))
    return [arm for name, arm in ARMS.items() if not names or name in wanted]
