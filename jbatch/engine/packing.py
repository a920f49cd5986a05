"""A plan becomes what goes up to the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jbatch.engine.sample import Sample
from jbatch.host.pack import pack
from jbatch.host.plan import StepPlan
from jbatch.host.row_data import row_data
from jbatch.seam.runner import Runner
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepInput


def pack_step(
    plan: StepPlan, shape: StateShape, vocab_size: int, samples: Mapping[int, Sample], runner: Runner[Any]
) -> StepInput:
    """For the least program that is compiled and can do it. `samples` are those of the plan, by seq_id."""
    sampler, counts = plan.sampler.choose(runner.samplers), runner.counts_all
    assert sampler is not None, "add_request refuses what no program can do"
    data = tuple(
        part
        for chunk in plan.chunks
        for draw in chunk.draws
        if draw.setup is not None
        for part in row_data(
            samples[draw.seq_id].sequence,
            draw.row,
            vocab_size,
            sampler,
            counts=counts,
        )
    )
    return pack(plan, shape, sampler, data)


def note_scheduled(plan: StepPlan, samples: Mapping[int, Sample], now: float) -> None:
    """When each sample was first in a step."""
    for chunk in plan.chunks:
        for seq_id in (chunk.seq_id, *(draw.seq_id for draw in chunk.draws)):
            sample = samples[seq_id]
            if sample.scheduled_ts is None:
                sample.scheduled_ts = now
