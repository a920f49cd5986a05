"""The account of a mixed step, by hand; those of whole runs are in tests/bench/ladder."""

import pytest

from bench.measure.account import step_rows
from bench.measure.drive import Event, Run
from bench.measure.floor import Floor
from bench.workloads.workload import WorkItem, Workload
from jbatch.host.metrics import StepRecord, Summary
from jbatch.host.plan import Chunk, Draw, StepPlan
from jbatch.host.policy import MODES
from jbatch.seam.bucket import Bucket
from jbatch.seam.rows import RowSetup
from jbatch.seam.shape import StateShape

SHAPE = StateShape(num_rows=4, num_pages=9, page_size=16, pages_per_seq=4)
FLOOR = Floor(1e9, 1e12, layer_params=100, head_params=10, itemsize=2, kv_bytes_per_token=64, flop_per_pair=8)


def record(step_idx, bucket, useful_slots, useful_tokens):
    return StepRecord(
        step_idx=step_idx,
        slots=bucket.slots,
        slots_used=useful_slots,
        tokens=bucket.tokens,
        tokens_used=useful_tokens,
        useful_slots=useful_slots,
        useful_tokens=useful_tokens,
        padded=bucket.num_places - useful_slots - useful_tokens,
        wasted=0,
        recomputed=0,
        output_tokens=1,
        pages_used=0,
        num_running=2,
        num_waiting=0,
        num_preempted=0,
    )


def test_a_mixed_step_has_slots_and_chunks():
    """Sequence 0 decodes its second token while sequence 1 gets its first."""
    prompts = (tuple(range(20)), tuple(range(16)))
    items = tuple(WorkItem(prompt, 2, 0.0) for prompt in prompts)
    draws = [(Draw(number, number, len(prompt) - 1, RowSetup()),) for number, prompt in enumerate(prompts)]
    chunks = [Chunk(number, number, prompts[number], 0, draws=draws[number]) for number in (0, 1)]
    first, second = Bucket(0, 64), Bucket(2, 32)
    plans = (
        StepPlan(0, first, chunks=(chunks[0],)),
        StepPlan(1, second, seq_ids=(0,), rows=(0,), chunks=(chunks[1],)),
    )
    records = record(0, first, 0, 20), record(1, second, 1, 16)
    events = [Event(plan, done, 0.1) for plan, done in zip(plans, records, strict=True)]
    run = Run(Workload("two", items, 0, {}), events, [0.0, 0.0], [[], []], [[], []], 0.2, 0.0, Summary())
    prefill, mixed = step_rows(run, SHAPE, MODES["continuous"], floor=FLOOR)

    assert (prefill.kind, prefill.slots, prefill.slots_used, prefill.computed) == ("prefill", 4, 1, 64)
    assert (prefill.pages_used, prefill.kv_tokens, prefill.rows) == (2, 20, [[0, 0, 0]])
    assert (mixed.kind, mixed.slots, mixed.slots_used, mixed.computed) == ("mixed", 2 + 2, 2, 34)
    assert (mixed.useful, mixed.padded) == (17, 17)
    assert mixed.rows == [[0, 0, 0], [1, 1, 2]]
    assert (mixed.pages_used, mixed.kv_tokens) == (1, 16), "sequence 0 has left"
    # Both read the weights; 21 and 16 tokens lie in the cache.
    read_s = 2 * 110 / 1e9 + (21 + 16) * 64 / 1e9
    assert mixed.floor_s == pytest.approx(read_s)
