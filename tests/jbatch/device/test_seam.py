"""What the seam carries, though no scheduler plans it yet: plans made by hand, on the real step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbatch.device.programs import TABLES
from jbatch.device.state import abstract_state, zeros
from jbatch.errors import JBatchError
from jbatch.host.pack import pack
from jbatch.host.plan import Chunk, Draw, PageCopy, StepPlan, Table, TableUpdate
from jbatch.host.request import Request, Sequence
from jbatch.host.row_data import row_data
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import prefill_bucket
from jbatch.seam.rows import RowSetup
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import Status
from tests.helpers.schedules import request
from tests.helpers.tiny_engine import (
    DECODE,
    MIXED,
    PAGE_SIZE,
    PREFILL,
    SEVERAL,
    SHAPE,
    make_runner,
    make_scheduler,
    runner_of_all,
    shared_runner,
    tiny_config,
)

PROMPT, OTHER = (5, 17, 3, 80, 41), (9, 30, 2)


@functools.cache
def mixed_runner():
    return make_runner(Sampler.FILTERED, buckets=(PREFILL, DECODE, MIXED))


def fresh(runner):
    """On a state of zeros, as it is when an engine begins."""
    runner._state = zeros(abstract_state(tiny_config(), runner.shape), runner.spec.device)
    return runner


def run(runner, plan, **options):
    return runner.collect(runner.submit(pack(plan, runner.shape, **options)))[0]


def setup(length, **fields):
    return RowSetup(**{"length": length, "budget": 20, **fields})


def chunk(tokens, row, *draws, start=0):
    """With a draw of its last token for each (row, setup)."""
    offset = len(tokens) - 1
    drawn = tuple(Draw(seq_id=to, row=to, offset=offset, setup=begun) for to, begun in draws)
    return Chunk(row, row, tuple(tokens), start, draws=drawn)


def prefill(*chunks, updates=(), copies=(), bucket=PREFILL, **fields):
    return StepPlan(0, bucket, chunks=chunks, table_updates=updates, page_copies=copies, **fields)


def prompt_in_page(runner, tokens, row, page):
    step = prefill(chunk(tokens, row, (row, setup(len(tokens)))), updates=(TableUpdate(row, 0, page),))
    return run(runner, step, sampler=Sampler.FILTERED).tokens[0, 0]


def decode(*rows):
    return StepPlan(1, DECODE, rows, rows, sampler=Sampler.FILTERED)


def test_a_decoding_row_and_a_chunk_in_one_step():
    """Their tokens, and the next ones, are those of two steps; only the rows that drew have moved."""
    runner = fresh(mixed_runner())
    first = prompt_in_page(runner, PROMPT, 1, 3)
    apart = run(runner, decode(1)).tokens[0, 0], prompt_in_page(runner, OTHER, 2, 4)
    later = run(runner, decode(1, 2)).tokens[:2, 0].tolist()

    fresh(runner)
    assert prompt_in_page(runner, PROMPT, 1, 3) == first
    both = StepPlan(
        1, MIXED, (1,), (1,), chunks=(chunk(OTHER, 2, (2, setup(3))),), table_updates=(TableUpdate(2, 0, 4),)
    )
    output = run(runner, both)
    drawn = {0: apart[0], MIXED.slots: apart[1]}  # the slots' draws come first
    assert {int(idx): output.tokens[idx, 0] for idx in np.flatnonzero(output.num_tokens)} == drawn
    assert run(runner, decode(1, 2)).tokens[:2, 0].tolist() == later
    rows = np.asarray(runner._state.rows)
    assert not rows[[0, 3]].any()


def test_a_mixed_step_of_padding_changes_nothing():
    runner = fresh(mixed_runner())
    prompt_in_page(runner, PROMPT, 1, 3)
    before = jax.tree.map(np.array, runner._state)
    output = run(runner, StepPlan(1, MIXED))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, runner._state))
    assert not output.num_tokens.any() and not output.status.any()


def test_several_steps_in_one_dispatch():
    """Four tokens of rows that go on, two of one whose budget ends, and those up to a stop id: rows and cache
    are those of four steps, one by one."""

    def begin():
        fresh(shared_runner())
        for row, fields in enumerate(({}, {"budget": 3}, {"temperature": 1.0, "seed": 3}, {})):
            begun = setup(5, **fields | ({"stop_ids": stops} if row == 3 else {}))
            step = prefill(chunk(PROMPT, row, (row, begun)), updates=(TableUpdate(row, 0, row + 1),))
            run(shared_runner(), step, sampler=Sampler.FILTERED)
        return shared_runner()

    stops = ()
    plan = StepPlan(1, DECODE, range(4), range(4), sampler=Sampler.FILTERED)
    alone = [run(begin(), plan)] + [run(shared_runner(), plan) for _ in range(3)]
    stops = (int(alone[1].tokens[3, 0]),)  # the second token of the last row ends it
    alone = [run(begin(), plan)] + [run(shared_runner(), plan) for _ in range(3)]
    expected = jax.tree.map(np.asarray, shared_runner()._state)

    output = run(begin(), dataclasses.replace(plan, bucket=SEVERAL))
    assert output.num_tokens.tolist() == [4, 2, 4, 2]
    assert output.status.tolist() == [Status.RUNNING, Status.OUT_OF_BUDGET, Status.RUNNING, Status.STOPPED]
    for row, count in enumerate(output.num_tokens):
        assert output.tokens[row, :count].tolist() == [step.tokens[row, 0] for step in alone[:count]]
    got = jax.tree.map(np.asarray, shared_runner()._state)
    np.testing.assert_array_equal(got.rows, expected.rows)
    for ours, theirs in zip(got.kv_pages, expected.kv_pages, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_prompt_with_three_draws():
    """Samples of one prompt: one chunk, one set of pages, and each token as if it were drawn alone."""
    runner = fresh(runner_of_all())
    begun = [setup(5, temperature=1.0, seed=7, sample_idx=idx) for idx in range(3)]
    alone = []
    for row in range(3):
        step = prefill(chunk(PROMPT, row, (row, begun[row])), updates=(TableUpdate(row, 0, 3),))
        alone.append(run(runner, step, sampler=Sampler.FILTERED).tokens[0, 0])
    expected = np.asarray(runner._state.rows)[:3]

    fresh(runner)
    step = prefill(
        chunk(PROMPT, 0, *enumerate(begun)), updates=tuple(TableUpdate(row, 0, 3) for row in range(3))
    )
    output = run(runner, step, sampler=Sampler.FILTERED)
    assert output.num_tokens.tolist() == [1, 1, 1, 0] and output.tokens[:3, 0].tolist() == alone
    assert len(set(alone)) > 1, "the samples do not differ"
    np.testing.assert_array_equal(np.asarray(runner._state.rows)[:3], expected)


def test_draws_at_every_token_of_a_chunk():
    """As a draft is verified: each draw sees the tokens up to its own, and no more."""
    runner = fresh(runner_of_all())
    expected = []
    for length in range(1, 4):
        fresh(runner)
        expected.append(prompt_in_page(runner, PROMPT[:length], 0, 3))
    fresh(runner)
    draws = tuple(Draw(0, row, row, setup(row + 1)) for row in range(3))
    step = prefill(Chunk(0, 0, PROMPT[:3], 0, draws=draws), updates=(TableUpdate(0, 0, 3),))
    assert run(runner, step, sampler=Sampler.FILTERED).tokens[:3, 0].tolist() == expected


def test_a_draw_without_setup_goes_on_with_the_row_on_the_device():
    """Row 1 has drawn two tokens of its budget of 20; the chunk's draw is its third."""
    runner = fresh(runner_of_all())
    first = prompt_in_page(runner, PROMPT, 1, 3)
    second = run(runner, decode(1)).tokens[0, 0]
    expected = run(runner, decode(1)).tokens[0, 0]

    fresh(runner)
    prompt_in_page(runner, PROMPT, 1, 3)
    run(runner, decode(1))
    step = prefill(chunk((int(first), int(second)), 1, (1, None), start=5))
    assert run(runner, step, sampler=Sampler.FILTERED).tokens[0, 0] == expected
    assert np.asarray(runner._state.rows)[1, RowSetup._fields.index("budget")] == 17


def test_a_planned_length_is_taken_back():
    """A step that a row took no part in: the scheduler plans the same position again, and loses nothing."""

    def tokens_of(skipped):
        runner, scheduler = fresh(runner_of_all()), make_scheduler()
        sequence = scheduler.add(request(list(PROMPT), 6))
        step = 0
        while scheduler.has_unfinished:
            plan = scheduler.schedule(0.0)
            given = plan
            if step == skipped:
                given = StepPlan(plan.step_idx, plan.bucket, table_updates=plan.table_updates)
            output = run(runner, given)
            planned = sequence.num_planned, sequence.num_cached_planned
            scheduler.apply(plan, output)
            if step == skipped:
                assert (sequence.num_planned, sequence.num_cached_planned) == (planned[0] - 1, planned[1] - 1)
            assert sequence.finished or sequence.num_cached == sequence.num_known - 1
            step += 1
        return sequence.output_token_ids, step

    expected, steps = tokens_of(None)
    assert tokens_of(2) == (expected, steps + 1) and len(expected) == 6


def test_500_table_updates_in_a_step_of_64_tokens():
    """A prefix of 8,000 tokens that is in the cache already: each of its pages is read."""
    shape = StateShape(num_rows=2, num_pages=520, page_size=PAGE_SIZE, pages_per_seq=512)
    bucket = prefill_bucket(64)
    runner = make_runner(Sampler.FILTERED, shape=shape, buckets=(bucket,))
    pages = np.random.default_rng(0).permutation(np.arange(1, 520))[:501].tolist()
    updates = tuple(TableUpdate(1, idx, page) for idx, page in enumerate(pages))
    start = 500 * PAGE_SIZE
    step = prefill(chunk(PROMPT, 1, (1, setup(start + 5)), start=start), updates=updates, bucket=bucket)
    output = run(runner, step, sampler=Sampler.FILTERED)
    assert (output.num_tokens[0], output.status[0]) == (1, Status.RUNNING)
    assert np.asarray(runner._state.block_tables)[1, :501].tolist() == pages
    for page in (pages[0], pages[250], pages[499]):
        state = fresh(runner)._state
        broken = tuple(leaf.at[page].set(jnp.nan) for leaf in state.kv_pages)
        runner._state = state._replace(kv_pages=broken)
        assert run(runner, step, sampler=Sampler.FILTERED).status[0] == Status.NON_FINITE
    runner.close()


def test_a_page_is_copied_before_it_is_read():
    """Row 2 goes on from a copy of row 1's page; what then happens to the page is nothing to it."""
    runner = fresh(runner_of_all())
    first = prompt_in_page(runner, PROMPT, 1, 3)
    second = run(runner, decode(1)).tokens[0, 0]

    fresh(runner)
    prompt_in_page(runner, PROMPT, 1, 3)
    last = chunk(PROMPT[-1:], 2, (2, setup(5)), start=4)
    step = prefill(last, updates=(TableUpdate(2, 0, 7),), copies=(PageCopy(3, 7),))
    assert run(runner, step, sampler=Sampler.FILTERED).tokens[0, 0] == first
    poisoned = tuple(leaf.at[3].set(jnp.nan) for leaf in runner._state.kv_pages)
    runner._state = runner._state._replace(kv_pages=poisoned)
    assert run(runner, decode(2)).tokens[0, 0] == second


def test_many_pages_are_copied_in_several_dispatches():
    """One dispatch copies 64 pages."""
    shape = SHAPE._replace(num_pages=200)
    runner = make_runner(Sampler.GREEDY, shape=shape, buckets=(DECODE,))
    runner.prepare_sharing()
    marked = tuple(leaf.at[1].set(1.5) for leaf in runner._state.kv_pages)
    runner._state = runner._state._replace(kv_pages=marked)
    copies = tuple(PageCopy(1, page) for page in range(2, 100))
    run(runner, StepPlan(0, DECODE, page_copies=copies))
    for leaf in runner._state.kv_pages:
        ones = np.asarray(leaf == 1.5).all(axis=(1, 2, 3, 4))
        assert np.flatnonzero(ones).tolist() == list(range(1, 100))
    runner.close()


def test_what_was_not_prepared_is_compiled_with_its_step():
    """And counted, as steps that nobody prepared are."""
    runner = make_runner(Sampler.GREEDY, buckets=(DECODE,))
    assert runner.compilations_after_warmup == 0
    run(runner, StepPlan(0, DECODE, page_copies=(PageCopy(1, 2),)))
    assert runner.compilations_after_warmup == 2
    runner.close()


def test_whole_block_tables_are_put_in_place_before_the_step():
    """More than one dispatch takes. What a row had is gone, and a table update of the step comes behind."""
    num_rows = 2 * TABLES + 3
    runner = make_runner(
        Sampler.GREEDY, shape=SHAPE._replace(num_rows=num_rows), buckets=(DECODE, prefill_bucket(16))
    )
    runner.prepare_sharing()
    before = runner.compilations_after_warmup
    old = tuple(TableUpdate(row, 5, 63) for row in (0, num_rows - 1))
    run(runner, StepPlan(0, prefill_bucket(16), table_updates=old))
    tables = tuple(Table(row, (row + 1, 40)) for row in range(1, num_rows))
    run(runner, StepPlan(1, DECODE, tables=tables, table_updates=(TableUpdate(2, 1, 50),)))
    found = np.asarray(runner._state.block_tables).tolist()
    assert found[0] == [0, 0, 0, 0, 0, 63] and found[2] == [3, 50, 0, 0, 0, 0]
    for row in (1, *range(3, num_rows)):
        assert found[row] == [row + 1, 40, 0, 0, 0, 0]
    assert runner.compilations_after_warmup == before
    runner.close()


def test_a_block_table_that_cannot_be_never_reaches_the_device():
    with pytest.raises(JBatchError, match="block table with page=64: must be from 0 to 63"):
        run(runner_of_all(), StepPlan(0, DECODE, tables=(Table(0, (64,)),)))


@pytest.mark.parametrize("copy, message", [((0, 2), "from=0"), ((64, 2), "from=64"), ((1, 64), "to=64")])
def test_copies_of_pages_that_do_not_exist_never_reach_the_device(copy, message):
    with pytest.raises(JBatchError, match=f"page copy with {message}: must be from 1 to 63"):
        run(runner_of_all(), StepPlan(0, DECODE, page_copies=(PageCopy(*copy),)))


@pytest.mark.parametrize("copies", [((1, 2), (2, 3)), ((1, 3), (2, 3)), ((5, 5),)])
def test_copies_that_depend_on_each_other_never_reach_the_device(copies):
    with pytest.raises(JBatchError, match="copied, or written, by another one"):
        run(runner_of_all(), StepPlan(0, DECODE, page_copies=tuple(PageCopy(*pair) for pair in copies)))


def test_a_mask_of_tokens_comes_with_its_step():
    """Of each draw its own, for this step alone; without one every token may be drawn."""
    runner = fresh(runner_of_all())
    free = prompt_in_page(runner, PROMPT, 1, 3)
    words = np.full((4, 3), -1, np.int32)
    words[0] = 0, 1 << 8, 0  # token 40, and no other
    step = prefill(chunk(PROMPT, 2, (2, setup(5))), updates=(TableUpdate(2, 0, 4),))
    assert free != 40
    masked = run(runner, step, sampler=Sampler.PROCESSED, token_mask=words)
    assert masked.tokens[0, 0] == 40
    assert run(runner, step, sampler=Sampler.PROCESSED).tokens[0, 0] == free


def test_penalties_count_the_whole_prompt_whatever_was_cached():
    """All but the prompt's last token lie in the cache, computed by steps that count nothing."""
    params = SamplingParams(temperature=0, repetition_penalty=100.0)
    sequence = Sequence(0, Request("r", PROMPT, params, 5, (), 0), list(PROMPT), 5)
    begun = setup(5, repetition_penalty=100.0)
    tokens = []
    for cached in (0, 4):
        runner = fresh(runner_of_all())
        if cached:
            prompt_in_page(runner, PROMPT[:cached], 0, 3)
        data = row_data(sequence, 1, tiny_config().vocab_size, Sampler.PROCESSED)
        step = prefill(chunk(PROMPT[cached:], 1, (1, begun), start=cached), updates=(TableUpdate(1, 0, 3),))
        tokens.append(run(runner, step, sampler=Sampler.PROCESSED, row_data=data).tokens[0, 0])
        counts = runner._features.state["counts"]
        assert np.flatnonzero(counts.in_prompt[1]).tolist() == sorted(PROMPT)
        assert np.flatnonzero(counts.in_output[1]).tolist() == [tokens[-1]]
    assert tokens[0] == tokens[1] and tokens[0] not in PROMPT
