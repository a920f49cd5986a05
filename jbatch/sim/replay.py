"""Run recorded plans through an executor, without a scheduler: every executor computes the same steps."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

from jbatch.errors import JBatchError
from jbatch.host.pack import pack
from jbatch.seam.runner import Runner
from jbatch.seam.step_output import StepOutput
from jbatch.sim.plan_file import Recording


class Replay(NamedTuple):
    """What came back of each plan, and how long all of them took."""

    outputs: tuple[StepOutput, ...]
    elapsed_s: float  # from the first submit to the last result; the plans were packed before


def replay(executor: Runner[Any], recording: Recording, *, depth: int = 1) -> Replay:
    """Run all plans, at most `depth` ahead of the one whose result is taken in.

    The executor must be idle and of the recording's sizes: rows and block tables are what its plans say, so
    nothing of an earlier run shows. Rows that end by a stop id end wherever this executor meets it.

    Raises:
      JBatchError: for steps that change logits or report on them: their row data (biases, words, ids) is not
        in a plan.
    """
    for plan in recording.plans:
        if plan.sampler.processes or plan.sampler.reports:
            name = plan.sampler.name
            raise JBatchError(
                f"step {plan.step_idx} is {name}: its row data is not recorded, so it cannot be replayed"
            )
    steps = [pack(plan, recording.shape) for plan in recording.plans]
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
        drawing = [draw.seq_id for chunk in plan.chunks for draw in chunk.draws]
        for first, seq_ids in ((0, plan.seq_ids), (plan.bucket.slots, drawing)):
            for idx, seq_id in enumerate(seq_ids, start=first):
                given = output.tokens[idx, : output.num_tokens[idx]]
                tokens.setdefault(seq_id, []).extend(given.tolist())
    return tokens
