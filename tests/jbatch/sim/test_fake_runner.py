"""The fake runner against a pencil."""

from jbatch.host.plan import Bucket, Chunk, RowSetup, Status, StepPlan, TableUpdate, pack
from jbatch.sim.fake_runner import FakeRunner, continuation, next_token

PREFILL, DECODE = Bucket("prefill", 1, 8), Bucket("decode", 2, 2)
NUM_ROWS, PAGE_SIZE = 2, 2


def test_the_definition():
    """1 + 2 and two of them: 5. 1 + 2 + 5 and three: 11. 19 and four: 23."""
    assert next_token([1, 2], vocab_size=97) == 5
    assert continuation([1, 2], 3, vocab_size=97) == [5, 11, 23]
    assert continuation([1, 2], 3, vocab_size=10) == [5, 1, 3]


def test_stop_ids_end_it_unless_banned_by_min_tokens():
    assert continuation([1, 2], 9, 97, stop_ids=[11]) == [5, 11]
    assert continuation([1, 2], 3, 97, stop_ids=[5], min_tokens=1) == [6, 12, 25]
    assert next_token([1, 2], 97, banned=[5, 6]) == 7


def runner_after_prefill(**setup):
    """Row 1 holds the prompt 1, 2, 3 in pages 4 and 2."""
    runner = FakeRunner(NUM_ROWS, num_pages=5, page_size=PAGE_SIZE, pages_per_seq=3)
    chunk = Chunk((1, 2, 3), 0, 0, RowSetup(length=3, **{"budget": 3, **setup}))
    plan = StepPlan(0, PREFILL, (0,), (1,), (TableUpdate(1, 0, 4), TableUpdate(1, 1, 2)), (chunk,))
    return runner, run(runner, plan)


def run(runner, plan):
    output, _ = runner.collect(runner.submit(pack(plan, NUM_ROWS, PAGE_SIZE)))
    return output.tokens[:, 0].tolist(), output.num_tokens.tolist(), output.status.tolist()


def decode(updates=(), frozen=()):
    return StepPlan(1, DECODE, (0,), (1,), updates, (), frozen)


def test_prefill_writes_pages_and_draws():
    runner, output = runner_after_prefill()
    assert output == ([9], [1], [Status.RUNNING])
    assert runner.cache[4].tolist() == [1, 2] and runner.cache[2].tolist() == [3, -1]


def test_decode_appends_and_ends_with_its_budget():
    runner, _ = runner_after_prefill()
    assert run(runner, decode()) == ([19, 0], [1, 0], [Status.RUNNING, 0])
    assert runner.cache[2].tolist() == [3, 9]
    assert run(runner, decode((TableUpdate(1, 2, 1),))) == ([39, 0], [1, 0], [Status.OUT_OF_BUDGET, 0])


def test_a_wrong_page_shows():
    runner, _ = runner_after_prefill()
    assert run(runner, decode((TableUpdate(1, 0, 3),)))[0] != [19, 0]


def test_a_row_that_ended_is_masked_in_the_next_step():
    runner, output = runner_after_prefill(stop_ids=(9,))
    assert output == ([9], [1], [Status.STOPPED])
    assert run(runner, decode()) == ([0, 0], [0, 0], [0, 0])
    assert runner.cache[2].tolist() == [3, -1], "a masked row wrote"


def test_a_frozen_row_stays_so():
    runner, _ = runner_after_prefill()
    assert run(runner, decode(frozen=(True,)))[1] == [0, 0]
    assert run(runner, decode())[1] == [0, 0]


def test_a_chunk_that_does_not_sample_gives_no_token():
    runner = FakeRunner(NUM_ROWS, num_pages=5, page_size=PAGE_SIZE, pages_per_seq=3)
    plan = StepPlan(0, PREFILL, (0,), (0,), (TableUpdate(0, 0, 1),), (Chunk((1, 2), 0, 0, None),))
    assert run(runner, plan) == ([0], [0], [0])
