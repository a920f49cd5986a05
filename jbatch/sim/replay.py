"""Run recorded plans through an executor, without a scheduler: every executor computes the same steps."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple, Protocol

from jbatch.errors import JBatchError
from jbatch.host.plan import StepInput, StepOutput, pack
from jbatch.sampling_params import Sampler
from jbatch.sim.plan_file import Recording


class Executor(Protocol):
    """What a replay, like the engine, needs of a runner."""

    def submit(self, step: StepInput) -> Any: ...

    def collect(self, handle: Any) -> tuple[StepOutput, float]: ...


class Replay(NamedTuple):
    """What came back of each plan, and how long all of them took."""

    outputs: tuple[StepOutput, ...]
    elapsed_s: float  # from the first submit to the last result; the plans were packed before


def replay(executor: Executor, recording: Recording, *, depth: int = 1) -> Replay:
    """Run all plans, at most `depth` ahead of the one whose result is taken in.

    The executor must be idle and of the recording's sizes: rows and block tables are what its plans say, so
    nothing of an earlier run shows. Rows that end by a stop id end wherever this executor meets it.

    Raises:
      JBatchError: for EXTENDED steps, whose row data (biases, words) a plan does not hold.
    """
    shape = recording.shape
    for plan in recording.plans:
        if plan.sampler == Sampler.EXTENDED:
            raise JBatchError(
                f"step {plan.step_idx} is EXTENDED: its row data is not recorded, so it cannot be replayed"
            )
    steps = [pack(plan, shape.num_rows, shape.page_size) for plan in recording.plans]
    outputs: list[StepOutput] = []
    in_flight: deque[Any] = deque()
    begin = time.perf_counter()
    for step in steps:
        in_flight.append(executor.submit(step))
        if len(in_flight) > depth:
            outputs.append(executor.collect(in_flight.popleft())[0])
    while in_flight:
        outputs.append(executor.collect(in_flight.popleft())[0])
    return Replay(tuple(outputs), time.perf_counter() - begin)


def tokens_by_sequence(recording: Recording, outputs: tuple[StepOutput, ...]) -> dict[int, list[int]]:
    """Every token that each sequence was given, by its seq_id, in order."""
    tokens: dict[int, list[int]] = {}
    for plan, output in zip(recording.plans, outputs, strict=True):
        for slot, seq_id in enumerate(plan.seq_ids):
            given = output.tokens[slot, : output.num_tokens[slot]]
            tokens.setdefault(seq_id, []).extend(given.tolist())
    return tokens
