"""What a step is asked to compute, against plans made by hand and against the runner with a pencil."""

from jbatch.host.pack import pack
from jbatch.host.plan import Chunk, Draw, StepPlan
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.rows import RowSetup
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import Status
from jbatch.sim.load import Load, RowLoads

SHAPE = StateShape(num_rows=4, num_pages=9, page_size=4, pages_per_seq=4)


def chunk(row, start, num_tokens, **setup):
    """Tokens of a prompt, and the draw behind them where there is a setup."""
    draws = (Draw(row, row, num_tokens - 1, RowSetup(length=start + num_tokens, **setup)),) if setup else ()
    return Chunk(row, row, (7,) * num_tokens, start, draws=draws)


def take(rows, plan):
    load, output = rows.take(pack(plan, SHAPE))
    return load, list(zip(output.num_tokens.tolist(), output.status.tolist(), strict=True))


def test_prompts_count_their_tokens_and_what_each_attends_to():
    rows, bucket = RowLoads(SHAPE), prefill_bucket(32)
    load, drawn = take(rows, StepPlan(0, bucket, chunks=(chunk(1, 0, 3, budget=2), chunk(2, 4, 2))))
    assert load == Load(bucket, 0, 0, 0, tokens=5, pairs=1 + 2 + 3 + 5 + 6, chunks=2)
    assert drawn[0] == (1, Status.RUNNING) and set(drawn[1:]) == {(0, Status.RUNNING)}


def test_slots_count_the_tokens_that_they_attend_to_until_they_end():
    rows, bucket = RowLoads(SHAPE), decode_bucket(4)
    prompts = chunk(0, 0, 3, budget=3), chunk(2, 0, 5, budget=2)
    take(rows, StepPlan(0, prefill_bucket(32), chunks=prompts))
    decode = StepPlan(1, bucket, (0, 2), (0, 2))
    load, drawn = take(rows, decode)
    assert load == Load(bucket, 2, keys=4 + 6, longest=6, tokens=0, pairs=0, chunks=0)
    assert drawn == [(1, Status.RUNNING), (1, Status.OUT_OF_BUDGET), (0, 0), (0, 0)]
    load, drawn = take(rows, decode)  # one has ended: the host does not know it yet
    assert load == Load(bucket, 1, keys=5, longest=5, tokens=0, pairs=0, chunks=0)
    assert drawn[:2] == [(1, Status.OUT_OF_BUDGET), (0, Status.RUNNING)]


def test_several_steps_in_one_dispatch():
    rows, bucket = RowLoads(SHAPE), Bucket(2, 0, 4)
    take(rows, StepPlan(0, prefill_bucket(32), chunks=(chunk(0, 0, 3, budget=4),)))
    load, drawn = take(rows, StepPlan(1, bucket, (0,), (0,)))
    assert load == Load(bucket, 1, keys=4 + 5 + 6, longest=6, tokens=0, pairs=0, chunks=0)
    assert drawn[0] == (3, Status.OUT_OF_BUDGET)


def test_a_held_row_is_not_computed():
    rows = RowLoads(SHAPE)
    take(rows, StepPlan(0, prefill_bucket(32), chunks=(chunk(0, 0, 3, budget=9), chunk(1, 0, 3, budget=9))))
    load, _ = take(rows, StepPlan(1, decode_bucket(2), (0, 1), (0, 1), frozen=(False, True)))
    assert (load.slots, load.keys) == (1, 4)


def test_a_request_ends_where_it_would_by_itself_also_after_a_preemption():
    rows = RowLoads(SHAPE, {5: 3})
    begun = chunk(0, 0, 4, budget=9, request_idx=5, prompt_len=4)
    again = chunk(1, 0, 6, budget=7, request_idx=5, prompt_len=4)  # with two tokens of its own
    _, drawn = take(rows, StepPlan(0, prefill_bucket(32), chunks=(begun, again)))
    assert drawn[:2] == [(1, Status.RUNNING), (1, Status.STOPPED)]
