"""Recorded plans, run again. Those of whole schedules: tests/jbatch/sim/test_plan_file.py."""

import dataclasses

import numpy as np
import pytest

from jbatch.errors import JBatchError
from jbatch.host.plan import Chunk, Draw, StepPlan, TableUpdate
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.rows import RowSetup
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import StepOutput
from jbatch.sim.fake_runner import FakeRunner
from jbatch.sim.plan_file import Recording
from jbatch.sim.replay import replay, tokens_by_sequence

SHAPE = StateShape(num_rows=2, num_pages=5, page_size=16, pages_per_seq=2)
CHUNK = Chunk(7, 1, (1, 2), 0, draws=(Draw(7, 1, 1, RowSetup(length=2, budget=4)),))
PLANS = (
    StepPlan(0, prefill_bucket(8), chunks=(CHUNK,), table_updates=(TableUpdate(1, 0, 3),)),
    *(StepPlan(idx, decode_bucket(1), (7,), (1,)) for idx in (1, 2, 3)),
)


def recording_of(*plans):
    return Recording(SHAPE, 97, plans)


class Watched(FakeRunner):
    """Counts the steps that are under way."""

    def __init__(self):
        super().__init__(SHAPE)
        self.under_way, self.most = 0, 0

    def submit(self, step):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return super().submit(step)

    def collect(self, handle):
        self.under_way -= 1
        return super().collect(handle)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_steps_are_computed_in_order_at_most_so_far_ahead(depth):
    runner, recording = Watched(), recording_of(*PLANS)
    again = replay(runner, recording, depth=depth)
    assert tokens_by_sequence(recording, again.outputs) == {7: [5, 11, 23, 47]}
    assert (runner.under_way, runner.most, runner.num_steps) == (0, depth + 1, 4)
    assert again.elapsed_s > 0


@pytest.mark.parametrize("sampler", [Sampler.LOGPROBS, Sampler.PROCESSED, Sampler.EXTENDED])
def test_steps_that_change_logits_or_report_are_not_replayed(sampler):
    """None of them is run: not those before either."""
    runner = FakeRunner(SHAPE)
    recording = recording_of(*PLANS[:2], dataclasses.replace(PLANS[2], sampler=sampler))
    with pytest.raises(JBatchError, match=f"^step 2 is {sampler.name}: its row data is not recorded"):
        replay(runner, recording)
    assert runner.num_steps == 0


@pytest.mark.parametrize("sampler", [Sampler.GREEDY, Sampler.PLAIN, Sampler.FILTERED])
def test_all_others_are(sampler):
    recording = recording_of(*(dataclasses.replace(plan, sampler=sampler) for plan in PLANS))
    outputs = replay(FakeRunner(SHAPE), recording).outputs
    assert tokens_by_sequence(recording, outputs) == {7: [5, 11, 23, 47]}


def test_whose_tokens_they_are():
    """Of slots first, then, behind all slots, of the draws of each chunk; as many as are valid."""
    chunks = (
        Chunk(1, 0, (5,), 0, draws=(Draw(1, 0, 0, None), Draw(2, 1, 0, None))),
        Chunk(3, 0, (5,), 0),
        Chunk(4, 0, (5,), 0, draws=(Draw(4, 0, 0, None),)),
    )
    plan = StepPlan(0, Bucket(4, 64), (0, 1), (0, 1), chunks=chunks)
    tokens = np.array([[10, 11], [20, 21], [0, 0], [0, 0], [30, 31], [40, 41], [50, 51]])
    output = StepOutput(tokens, np.array([2, 1, 0, 0, 1, 0, 2]), np.zeros(7))
    given = tokens_by_sequence(recording_of(plan, plan), (output, output))
    assert given == {0: [10, 11] * 2, 1: [20, 30] * 2, 2: [], 4: [50, 51] * 2}
