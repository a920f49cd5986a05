"""Arms of a comparison that are built and ready: what a pass over the requests is for each kind of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from bench.compare.stage import Stage
from bench.ladder.arms import ARMS as LADDER
from bench.measure.drive import Run, drive
from bench.workloads.workload import WorkItem
from jbatch.seam.runner import Runner
from jbatch.sim.replay import replay, tokens_by_sequence


class Outcome(NamedTuple):
    """What one pass over the workload gave."""

    tokens: list[list[int]]  # by request
    duration_s: float
    run: Run | None = None  # where jbatch's engine drove it


class ReadyArm(Protocol):
    """An arm that is built: it can be run again and again."""

    def run(self) -> Outcome:
        """One pass over the stage's workload."""
        ...

    def describe(self) -> dict[str, Any]:
        """Attention, execution and device, for the report."""
        ...

    def close(self) -> None:
        """Let go of what is the arm's own."""
        ...


class DrivenArm:
    """jbatch's engine and scheduler, continuous batching, on an executor."""

    def __init__(self, stage: Stage, runner: Runner[Any], about: dict[str, Any]):
        self._stage, self._runner, self._about = stage, runner, about

    def run(self) -> Outcome:
        """One pass, on a fresh engine."""
        subject = self._stage.subject
        engine = subject.new_engine(LADDER["continuous"], subject.max_num_seqs, self._runner)
        run = drive(engine, self._stage.workload)
        return Outcome(run.token_ids, run.duration_s - run.idle_s, run)

    def describe(self) -> dict[str, Any]:
        """What the executor is made of."""
        return self._about

    def close(self) -> None:
        """Nothing to do: the runner is its stage's."""


class ReplayedArm:
    """The recorded plans on an executor: no scheduler, and every step as in the recorded run."""

    def __init__(self, stage: Stage, executor: Runner[Any], about: dict[str, Any]):
        self._stage, self._executor = stage, executor
        self._about = about | {"num_steps": len(stage.recording().plans)}

    def run(self) -> Outcome:
        """All recorded steps, one after the other."""
        recording = self._stage.recording()
        result = replay(self._executor, recording)
        tokens = tokens_by_sequence(recording, result.outputs)
        return Outcome([tokens[seq_id] for seq_id in sorted(tokens)], result.elapsed_s)

    def describe(self) -> dict[str, Any]:
        """What the executor is made of, and the number of steps."""
        return self._about

    def close(self) -> None:
        """Nothing to do: the executor is its stage's."""


class ForeignEngine(Protocol):
    """An engine that is not jbatch's."""

    def run(self, items: Sequence[WorkItem]) -> list[list[int]]:
        """One pass over the requests: the token ids of each."""
        ...

    def describe(self) -> dict[str, Any]:
        """Attention, execution and device, for the report."""
        ...

    def close(self) -> None:
        """Let go of the engine's memory."""
        ...


class ForeignArm:
    """An engine that is not jbatch's, timed as a whole."""

    def __init__(self, stage: Stage, engine: ForeignEngine):
        self._stage, self._engine = stage, engine

    def run(self) -> Outcome:
        """All requests at once, from the first to the last token."""
        begin = time.perf_counter()
        tokens = self._engine.run(self._stage.workload.items)
        return Outcome(tokens, time.perf_counter() - begin)

    def describe(self) -> dict[str, Any]:
        """What the engine says of itself."""
        return self._engine.describe()

    def close(self) -> None:
        """Let go of the engine's memory."""
        self._engine.close()
