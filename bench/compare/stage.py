"""What the arms of a comparison share: jbatch's model and weights, the requests, and the recorded plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.ladder.subject import LLMSubject
from bench.measure.drive import Run
from bench.workloads.workload import Workload
from jbatch.seam.shape import StateShape
from jbatch.sim.plan_file import PlanWriter, Recording, read_plans


class Stage:
    """jbatch's LLM, its weights as tensors, one cache of the PyTorch engine, the plans of a reference pass.

    PyTorch is imported when an arm needs it.

    Args:
      plan_path: where the reference pass is recorded, to be replayed.
    """

    def __init__(self, subject: LLMSubject, workload: Workload, model_dir: Path, plan_path: Path):
        self.subject, self.workload, self.model_dir = subject, workload, model_dir
        self._plan_path = plan_path
        self._recording: Recording | None = None
        self._torch_runners: dict[str, Any] = {}

    @property
    def shape(self) -> StateShape:
        """The sizes of the cache, of jbatch's engine and of PyTorch's."""
        return self.subject.llm.runner.shape

    def record(self, run: Run) -> None:
        """Write the plans of a pass to the file."""
        vocab_size = self.subject.llm.model_config.vocab_size
        with PlanWriter(self._plan_path, self.shape, vocab_size) as writer:
            for event in run.events:
                if event.plan is not None:
                    writer.write(event.plan)

    def recording(self) -> Recording:
        """The plans of the file, which is read once."""
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
