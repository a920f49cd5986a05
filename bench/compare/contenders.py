"""The arms of `jbatch bench compare`: jbatch, and PyTorch's on the same device, weights and requests.

PyTorch and transformers are imported only when an arm that needs them is built, so that an arm which cannot
be built takes nobody along.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bench.ladder.arms import ARMS as LADDER
from bench.measure.drive import Run, drive
from bench.measure.subject import LLMSubject
from bench.workloads.workload import Workload
from jbatch.engine.engine import EngineStep
from jbatch.errors import ConfigError
from jbatch.host.plan import StepPlan
from jbatch.seam.runner import Runner
from jbatch.sim.plan_file import PlanWriter, Recording, read_plans
from jbatch.sim.replay import replay, tokens_by_sequence


class Outcome(NamedTuple):
    """One pass over the workload."""

    tokens: list[list[int]]  # by request
    duration_s: float
    run: Run | None = None  # where jbatch's engine drove it


class Contender(Protocol):
    """An arm, built and ready."""

    def run(self) -> Outcome: ...

    def describe(self) -> dict[str, Any]:
        """Attention, execution and device, for the report."""
        ...

    def close(self) -> None: ...


class Stage:
    """What the arms share: jbatch's LLM, its weights as tensors, one cache of the PyTorch engine, the plans.

    Args:
      plan_path: where the reference pass is recorded, to be replayed.
    """

    def __init__(self, subject: LLMSubject, workload: Workload, model_dir: Path, plan_path: Path):
        self.subject, self.workload, self.model_dir = subject, workload, model_dir
        self._plan_path = plan_path
        self._recording: Recording | None = None
        self._torch_runners: dict[str, Any] = {}

    def record(self, plans: list[StepPlan]) -> None:
        """Write the plans of a pass to the file."""
        llm = self.subject.llm
        with PlanWriter(self._plan_path, llm.runner.shape, llm.model_config.vocab_size) as writer:
            for plan in plans:
                writer.write(plan)

    def recording(self) -> Recording:
        """The file, read once."""
        if self._recording is None:
            self._recording = read_plans(self._plan_path)
        return self._recording

    def tensors(self) -> dict[str, Any]:
        """jbatch's weights, in the same memory."""
        from bench.compare.torch_engine.model import from_jax

        return from_jax(self.subject.llm.runner.params)

    def torch_runner(self, kernel: str) -> Any:
        """The PyTorch executor on a decode kernel; all of them share one cache. Raises ConfigError for a
        kernel that cannot run here."""
        from bench.compare.torch_engine.runner import Options, TorchRunner

        if kernel not in self._torch_runners:
            config = self.subject.llm.engine.scheduler.config
            self._torch_runners[kernel] = TorchRunner(
                self.subject.llm.model_config,
                self.tensors(),
                config.shape,
                config.buckets,
                Options(kernel),
                next(iter(self._torch_runners.values()), None),
            )
        return self._torch_runners[kernel]

    def close(self) -> None:
        """Let go of the PyTorch engine's memory. jbatch's is its subject's."""
        for runner in self._torch_runners.values():
            runner.close()
        self._torch_runners = {}


class Listener:
    """An engine that keeps the plans and the tokens that its steps give."""

    def __init__(self, engine: Any):
        self._engine = engine
        self.plans: list[StepPlan] = []
        self.tokens: dict[str, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> EngineStep:
        step = self._engine.step()
        if step.plan is not None:
            self.plans.append(step.plan)
        for output in step.outputs:
            self.tokens[output.request_id] = output.outputs[0].token_ids
        return step


class Driven:
    """jbatch's engine and scheduler, continuous batching, on an executor."""

    def __init__(self, stage: Stage, runner: Any, about: dict[str, Any]):
        self._stage, self._runner, self._about = stage, runner, about
        self.plans: list[StepPlan] = []  # of the last pass

    def run(self) -> Outcome:
        subject = self._stage.subject
        engine = subject.new_engine(LADDER["continuous"], subject.max_num_seqs)
        engine.runner = self._runner
        listener: Any = Listener(engine)
        run = drive(listener, self._stage.workload)
        self.plans = listener.plans
        tokens = [listener.tokens[str(number)] for number in range(len(self._stage.workload.items))]
        return Outcome(tokens, run.duration_s - run.idle_s, run)

    def describe(self) -> dict[str, Any]:
        return self._about

    def close(self) -> None:
        """The runner is its stage's."""


class Replayed:
    """The recorded plans on an executor: no scheduler, and every step as in the recorded run."""

    def __init__(self, stage: Stage, executor: Runner[Any], about: dict[str, Any]):
        self._stage, self._executor = stage, executor
        self._about = about | {"num_steps": len(stage.recording().plans)}

    def run(self) -> Outcome:
        recording = self._stage.recording()
        result = replay(self._executor, recording)
        tokens = tokens_by_sequence(recording, result.outputs)
        return Outcome([tokens[seq_id] for seq_id in sorted(tokens)], result.elapsed_s)

    def describe(self) -> dict[str, Any]:
        return self._about

    def close(self) -> None:
        """The executor is its stage's."""


class Elsewhere:
    """An engine that is not jbatch's, timed as a whole."""

    def __init__(self, stage: Stage, engine: Any):
        self._stage, self._engine = stage, engine

    def run(self) -> Outcome:
        begin = time.perf_counter()
        tokens = self._engine.run(self._stage.workload.items)
        return Outcome(tokens, time.perf_counter() - begin)

    def describe(self) -> dict[str, Any]:
        return self._engine.describe()

    def close(self) -> None:
        self._engine.close()


def _jbatch(stage: Stage) -> Driven:
    return Driven(stage, stage.subject.llm.runner, _about_jbatch(stage))


def _torch_paged(kernel: str) -> Callable[[Stage], Contender]:
    def build(stage: Stage) -> Driven:
        runner = stage.torch_runner(kernel)
        return Driven(stage, runner, runner.describe())

    return build


def _replay_jbatch(stage: Stage) -> Replayed:
    return Replayed(stage, stage.subject.llm.runner, _about_jbatch(stage))


def _replay_torch(stage: Stage) -> Replayed:
    runner = stage.torch_runner("auto")
    return Replayed(stage, runner, runner.describe())


def _hf_generate(stage: Stage) -> Elsewhere:
    from bench.compare import hugging_face

    model = hugging_face.build(stage.model_dir, stage.tensors())
    return Elsewhere(stage, hugging_face.Generate(model, stage.subject.max_num_seqs, stage.workload.items))


def _hf_continuous(stage: Stage) -> Elsewhere:
    from bench.compare import hugging_face

    tensors = stage.tensors()
    embedding = tensors["embedding"]
    attention = hugging_face.best_attention(embedding.device, embedding.dtype)
    model = hugging_face.build(stage.model_dir, tensors, attention)
    shape = stage.subject.llm.runner.shape
    cache_tokens = (shape.num_pages - 1) * shape.page_size
    sizes = (stage.subject.max_num_seqs, cache_tokens, shape.page_size)
    return Elsewhere(stage, hugging_face.Continuous(model, *sizes))


def _about_jbatch(stage: Stage) -> dict[str, Any]:
    runner = stage.subject.llm.runner
    attention = runner.spec.attention
    return {
        "attention": f"{attention.decode} (decode), {attention.prefill} (prefill)",
        "execution": "ahead-of-time compiled steps",
        "device": runner.spec.device.device_kind,
    }


class Entry(NamedTuple):
    """An arm's name, and what it is."""

    name: str
    definition: str
    build: Callable[[Stage], Contender]


SAME_SCHEDULER = (
    "jbatch's scheduler, plans, buckets and cache layout, on a PyTorch executor; prefill attention "
    "is one SDPA call per sequence and layer, uncompiled"
)
REPLAY = "the steps of jbatch's recorded run, without a scheduler, on "
ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("jbatch", "continuous batching in JAX", _jbatch),
        Entry("torch-paged", SAME_SCHEDULER, _torch_paged("auto")),
        Entry(
            "torch-paged-flash-attn",
            f"{SAME_SCHEDULER}, decoding with FlashAttention 2",
            _torch_paged("flash-attn"),
        ),
        Entry(
            "torch-paged-flash-attn-3",
            f"{SAME_SCHEDULER}, decoding with FlashAttention 3",
            _torch_paged("flash-attn-3"),
        ),
        Entry(
            "torch-paged-mosaic",
            f"{SAME_SCHEDULER}, decoding with this project's Mosaic kernel",
            _torch_paged("mosaic"),
        ),
        Entry(
            "hf-generate",
            "transformers' generate: batches in order of arrival, left-padded, static cache; each runs to "
            "its longest request, and only the tokens that were asked for count",
            _hf_generate,
        ),
        Entry("hf-continuous", "transformers' continuous batching (generate_batch)", _hf_continuous),
        Entry("replay-jbatch", REPLAY + "jbatch's runner", _replay_jbatch),
        Entry("replay-torch", REPLAY + "the PyTorch executor", _replay_torch),
    )
}
GROUPS = {"replay": ("replay-jbatch", "replay-torch")}
REFERENCE = "jbatch"


def choose_entries(names: list[str]) -> list[Entry]:
    """In the order above, jbatch among them; all by default. Raises ConfigError for an unknown name."""
    wanted = {REFERENCE}
    for name in names:
        if name not in ENTRIES and name not in GROUPS:
            raise ConfigError("arms", name, f"must be one of {', '.join((*ENTRIES, *GROUPS))}")
        wanted.update(GROUPS.get(name, (name,)))
    return [entry for name, entry in ENTRIES.items() if not names or name in wanted]


def versions() -> dict[str, str | None]:
    """Of what the arms are made of; None for what is not installed."""
    from importlib import metadata

    found: dict[str, str | None] = {}
    for module, package in (
        ("torch", "torch"),
        ("transformers", "transformers"),
        ("triton", "triton"),
        ("flash_attn", "flash-attn"),
        ("flash_attn_interface", "flash-attn-3"),
    ):
        try:
            there = importlib.util.find_spec(module) is not None
            found[package] = metadata.version(package) if there else None
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
