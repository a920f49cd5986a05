"""The fake runner against a pencil."""

from jbatch.host.pack import pack
from jbatch.host.plan import Chunk, Draw, PageCopy, StepPlan, Table, TableUpdate
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.rows import RowSetup
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import Status
from jbatch.sim.fake_runner import FakeRunner, continuation, next_token

PREFILL, DECODE, MIXED = prefill_bucket(8), decode_bucket(2), Bucket(1, 32)
SHAPE = StateShape(num_rows=2, num_pages=5, page_size=2, pages_per_seq=3)
IDLE = (0, 0, Status.RUNNING)


def test_the_definition():
    """1 + 2 and two of them: 5. 1 + 2 + 5 and three: 11. 19 and four: 23."""
    assert next_token([1, 2], vocab_size=97) == 5
    assert continuation([1, 2], 3, vocab_size=97) == [5, 11, 23]
    assert continuation([1, 2], 3, vocab_size=10) == [5, 1, 3]


def test_stop_ids_end_it_unless_banned_by_min_tokens():
    assert continuation([1, 2], 9, 97, stop_ids=[11]) == [5, 11]
    assert continuation([1, 2], 3, 97, stop_ids=[5], min_tokens=1) == [6, 12, 25]
    assert next_token([1, 2], 97, banned=[5, 6]) == 7


def new_runner():
    return FakeRunner(SHAPE)


def setup_of(**setup):
    return RowSetup(**{"length": 3, "budget": 3, **setup})


PAGES = TableUpdate(1, 0, 4), TableUpdate(1, 1, 2)


def runner_after_prefill(**setup):
    """Row 1 holds the prompt 1, 2, 3 in pages 4 and 2."""
    runner = new_runner()
    chunk = Chunk(0, 1, (1, 2, 3), 0, draws=(Draw(0, 1, 2, setup_of(**setup)),))
    return runner, run(runner, StepPlan(0, PREFILL, chunks=(chunk,), table_updates=PAGES))


def run(runner, plan):
    """(token, number of tokens, status) of each draw."""
    output, _ = runner.collect(runner.submit(pack(plan, SHAPE)))
    assert output.tokens.shape[1] == 1
    columns = output.tokens[:, 0], output.num_tokens, output.status
    return [*zip(*(column.tolist() for column in columns), strict=True)]


def decode(updates=(), frozen=(), **fields):
    return StepPlan(1, DECODE, (0,), (1,), frozen, table_updates=updates, **fields)


def test_prefill_writes_pages_and_draws():
    runner, output = runner_after_prefill()
    assert output == [(9, 1, Status.RUNNING)]
    assert runner.cache[4].tolist() == [1, 2] and runner.cache[2].tolist() == [3, -1]


def test_decode_appends_and_ends_with_its_budget():
    runner, _ = runner_after_prefill()
    assert run(runner, decode()) == [(19, 1, Status.RUNNING), IDLE]
    assert runner.cache[2].tolist() == [3, 9]
    assert run(runner, decode((TableUpdate(1, 2, 1),))) == [(39, 1, Status.OUT_OF_BUDGET), IDLE]


def test_a_wrong_page_shows():
    runner, _ = runner_after_prefill()
    assert run(runner, decode((TableUpdate(1, 0, 3),)))[0][0] != 19


def test_a_row_that_ended_is_masked_in_the_next_step():
    runner, output = runner_after_prefill(stop_ids=(9,))
    assert output == [(9, 1, Status.STOPPED)]
    assert run(runner, decode()) == [IDLE, IDLE]
    assert runner.cache[2].tolist() == [3, -1], "a masked row wrote"


def test_a_frozen_row_stays_so():
    runner, _ = runner_after_prefill()
    assert run(runner, decode(frozen=(True,))) == [IDLE, IDLE]
    assert run(runner, decode()) == [IDLE, IDLE]


def test_a_chunk_without_a_draw_gives_no_token():
    plan = StepPlan(0, PREFILL, chunks=(Chunk(0, 0, (1, 2), 0),), table_updates=(TableUpdate(0, 0, 1),))
    runner = new_runner()
    assert run(runner, plan) == [IDLE] and runner.cache[1].tolist() == [1, 2]


# Steps of both, draws of any number, and copies of pages.


def test_a_mixed_step_decodes_in_front_and_draws_from_chunks_behind():
    """Row 1 goes on with 1, 2, 3, 9, while row 0 begins with 7."""
    runner, _ = runner_after_prefill()
    chunk = Chunk(1, 0, (7,), 0, draws=(Draw(1, 0, 0, setup_of(length=1, budget=1)),))
    plan = StepPlan(1, MIXED, (0,), (1,), chunks=(chunk,), table_updates=(TableUpdate(0, 0, 1),))
    assert run(runner, plan) == [(19, 1, Status.RUNNING), (8, 1, Status.OUT_OF_BUDGET), IDLE]
    assert runner.cache[2].tolist() == [3, 9] and runner.cache[1].tolist() == [7, -1]


def test_several_draws_of_one_chunk_each_advance_a_row_of_their_own():
    """Two samples of the prompt 1, 2, 3, of which the chunk is the rest: their own index adds to the sum.
    Row 0 goes on in pages of its own, with a copy of the one that is not full."""
    runner = new_runner()
    run(runner, StepPlan(0, PREFILL, chunks=(Chunk(0, 1, (1, 2), 0),), table_updates=PAGES[:1]))
    draws = Draw(0, 1, 0, setup_of()), Draw(1, 0, 0, setup_of(sample_idx=1, budget=2))
    chunk = Chunk(0, 1, (3,), 2, draws=draws)
    begin = StepPlan(0, MIXED, chunks=(chunk,), table_updates=PAGES[1:])
    assert run(runner, begin) == [IDLE, (9, 1, Status.RUNNING), (10, 1, Status.RUNNING)]

    shared, own = TableUpdate(0, 0, 4), TableUpdate(0, 1, 3)
    both = StepPlan(1, DECODE, (0, 1), (1, 0), table_updates=(shared, own), page_copies=(PageCopy(2, 3),))
    assert run(runner, both) == [(19, 1, Status.RUNNING), (21, 1, Status.OUT_OF_BUDGET)]
    assert runner.cache[4].tolist() == [1, 2]
    assert (runner.cache[2].tolist(), runner.cache[3].tolist()) == ([3, 9], [3, 10])


def test_draws_at_several_places_of_one_chunk():
    """Each sees the tokens up to its own."""
    draws = Draw(0, 1, 2, setup_of()), Draw(1, 0, 0, setup_of())
    plan = StepPlan(
        0, prefill_bucket(32), chunks=(Chunk(0, 1, (1, 2, 3), 0, draws=draws),), table_updates=PAGES
    )
    assert run(new_runner(), plan) == [(9, 1, Status.RUNNING), (2, 1, Status.RUNNING)]


def test_draws_belong_to_the_chunk_in_which_their_place_is():
    """The second chunk's place is 8; the first has none."""
    chunks = Chunk(0, 1, (1, 2, 3), 0), Chunk(1, 0, (7, 8), 0, draws=(Draw(1, 0, 1, setup_of(length=2)),))
    updates = (*PAGES, TableUpdate(0, 0, 1))
    plan = StepPlan(0, prefill_bucket(32), chunks=chunks, table_updates=updates)
    assert run(new_runner(), plan) == [(17, 1, Status.RUNNING), IDLE]


def test_a_draw_without_setup_goes_on_with_the_row_as_it_is():
    """Two tokens more, 9 and 19, as a chunk: the row's budget of 3 has one left, and then none."""
    runner, _ = runner_after_prefill(budget=3)
    again = Chunk(0, 1, (9,), 3, draws=(Draw(0, 1, 0, None),))
    assert run(runner, StepPlan(1, PREFILL, chunks=(again,))) == [(19, 1, Status.RUNNING)]
    last = Chunk(0, 1, (19,), 4, draws=(Draw(0, 1, 0, None),))
    plan = StepPlan(2, PREFILL, chunks=(last,), table_updates=(TableUpdate(1, 2, 1),))
    assert run(runner, plan) == [(39, 1, Status.OUT_OF_BUDGET)]
    assert run(runner, decode()) == [IDLE, IDLE]


def test_a_draw_without_setup_of_a_row_that_ended_gives_no_token():
    runner, _ = runner_after_prefill(stop_ids=(9,))
    plan = StepPlan(1, PREFILL, chunks=(Chunk(0, 1, (9,), 3, draws=(Draw(0, 1, 0, None),)),))
    assert run(runner, plan) == [IDLE]


def test_whole_block_tables_are_put_in_place_before_the_step():
    """The sequence now sees its first page twice, and writes to it: 1, 9, 1, 9."""
    runner, _ = runner_after_prefill()
    assert run(runner, decode(tables=(Table(1, (4, 4)),))) == [(24, 1, Status.RUNNING), IDLE]


def test_pages_are_copied_before_the_step():
    """The sequence goes on in copies of its pages, and the pages stay as they were."""
    runner, _ = runner_after_prefill()
    copies, moved = (PageCopy(4, 3), PageCopy(2, 1)), (TableUpdate(1, 0, 3), TableUpdate(1, 1, 1))
    assert run(runner, decode(moved, page_copies=copies)) == [(19, 1, Status.RUNNING), IDLE]
    assert runner.cache[3].tolist() == [1, 2] and runner.cache[1].tolist() == [3, 9]
    assert runner.cache[4].tolist() == [1, 2] and runner.cache[2].tolist() == [3, -1]
