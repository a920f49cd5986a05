"""The compiled steps, looked at from outside: rows, tables and pages before and after, byte by byte."""

import functools

import jax
import numpy as np
import pytest

from jbatch.device.state import abstract_state, zeros
from jbatch.host.pack import pack
from jbatch.host.plan import Chunk, Draw, StepPlan, TableUpdate
from jbatch.sampler import Sampler
from jbatch.seam.rows import RowSetup
from jbatch.seam.step_input import StepInput, padding
from jbatch.seam.step_output import Status
from tests.helpers.paged import PagedModel
from tests.helpers.tiny_engine import (
    DECODE,
    MAX_MODEL_LEN,
    PAGE_SIZE,
    PREFILL,
    SHAPE,
    runner_of_all,
    shared_runner,
    tiny_config,
    tiny_params,
)

PROMPT = (5, 17, 3, 80, 41)
FINISHED, LENGTH, LAST_TOKEN, BUDGET = (
    RowSetup._fields.index(name) for name in ("finished", "length", "last_token", "budget")
)


@pytest.fixture
def runner():
    """On a state of zeros, as it is when an engine begins."""
    runner = shared_runner()
    reset(runner)
    return runner


def reset(runner):
    runner._state = zeros(abstract_state(tiny_config(), SHAPE), runner.spec.device)


def run(runner, plan, sampler=Sampler.GREEDY):
    return runner.collect(runner.submit(pack(plan, SHAPE, sampler)))[0]


def snapshot(runner):
    return jax.tree.map(lambda leaf: np.asarray(leaf).copy(), runner._state)


def snapshot_extra(runner):
    return jax.tree.map(lambda leaf: np.asarray(leaf).copy(), runner._features.state)


def equal(state, other):
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def setup(prompt=PROMPT, **fields):
    return RowSetup(**{"length": len(prompt), "budget": 20, **fields})


def prefill(prompt=PROMPT, row=1, page=3, setup=None, start=0):
    """One prompt, whose first page is `page`."""
    draws = () if setup is None else (Draw(0, row, len(prompt) - 1, setup),)
    chunk = Chunk(0, row, tuple(prompt), start, draws=draws)
    return StepPlan(0, PREFILL, chunks=(chunk,), table_updates=(TableUpdate(row, 0, page),))


def decode(*rows, frozen=(), updates=()):
    return StepPlan(1, DECODE, tuple(range(len(rows))), rows, frozen, table_updates=updates)


@functools.cache
def paged_model():
    return PagedModel(tiny_config(), tiny_params(), MAX_MODEL_LEN)


def best_token(token_ids):
    """By the same weights, in one pass."""
    return int(paged_model().log_probs([token_ids])[0][-1].argmax())


def changed(before, after):
    """(page, offset) of every place whose keys or values differ."""
    places = set()
    for old, new in zip(before.kv_pages, after.kv_pages, strict=True):
        different = (old != new).any(axis=(1, 2, 4))  # [num_pages, page_size]
        places |= {(int(page), int(offset)) for page, offset in zip(*np.nonzero(different), strict=True)}
    return places


@pytest.mark.parametrize("bucket", [PREFILL, DECODE])
@pytest.mark.parametrize("sampler", Sampler)
def test_padding_changes_nothing(runner, bucket, sampler):
    """Not one byte of the whole state, whatever the rows hold."""
    runner = runner_of_all()
    reset(runner)
    run(runner, prefill(setup=setup()), sampler)
    before = snapshot(runner), snapshot_extra(runner)
    handle = runner.submit(StepInput(bucket, sampler, padding(bucket, SHAPE, sampler)))
    output = runner.collect(handle)[0]
    after = snapshot(runner), snapshot_extra(runner)
    assert equal(before, after)
    assert not output.num_tokens.any() and not output.tokens.any() and not output.status.any()


def test_a_prompt_fills_its_places_and_begins_its_row(runner):
    before = snapshot(runner)
    output = run(runner, prefill(setup=setup(stop_ids=(2,))))
    after = snapshot(runner)
    assert changed(before, after) == {(3, offset) for offset in range(len(PROMPT))}
    assert output.tokens[0, 0] == best_token(PROMPT)
    assert (output.num_tokens.tolist(), output.status.tolist()) == ([1, 0, 0, 0], [0, 0, 0, 0])
    row = after.rows[1]
    assert (row[LENGTH], row[LAST_TOKEN], row[BUDGET], row[FINISHED]) == (5, output.tokens[0, 0], 19, 0)
    assert after.block_tables[1, 0] == 3 and np.count_nonzero(after.block_tables) == 1
    assert not after.rows[[0, 2, 3]].any()


def test_a_chunk_that_is_not_the_last_leaves_its_row_alone(runner):
    run(runner, prefill((9, 9), page=6, setup=setup((9, 9))))  # another sequence's, before
    before = snapshot(runner)
    output = run(runner, prefill(setup=None))
    after = snapshot(runner)
    assert not output.num_tokens.any() and np.array_equal(before.rows, after.rows)
    assert len(changed(before, after)) == len(PROMPT)


def test_chunks_and_one_pass_agree(runner):
    whole = run(runner, prefill(setup=setup())).tokens[0, 0]
    for split in range(1, len(PROMPT)):
        run(runner, prefill(PROMPT[:split], row=2, page=5))
        output = run(runner, prefill(PROMPT[split:], row=2, page=5, setup=setup(), start=split))
        assert output.tokens[0, 0] == whole


def test_decode_writes_one_place_per_row_and_advances_it(runner):
    first = run(runner, prefill(setup=setup())).tokens[0, 0]
    before = snapshot(runner)
    output = run(runner, decode(1))
    after = snapshot(runner)
    assert changed(before, after) == {(3, len(PROMPT))}
    assert output.tokens[0, 0] == best_token((*PROMPT, int(first)))
    assert (after.rows[1][LENGTH], after.rows[1][BUDGET]) == (6, 18)


def test_table_updates_reach_the_device_with_the_step_that_needs_them(runner):
    prompt = tuple(range(10, 10 + PAGE_SIZE))
    first = run(runner, prefill(prompt, setup=setup(prompt))).tokens[0, 0]
    before = snapshot(runner)
    output = run(runner, decode(1, updates=(TableUpdate(1, 1, 7),)))
    assert changed(before, snapshot(runner)) == {(7, 0)}
    assert output.tokens[0, 0] == best_token((*prompt, int(first)))


@pytest.mark.parametrize("end", ["stop", "length", "frozen"])
def test_a_finished_row_is_masked_in_the_very_next_step(runner, end):
    """Its write is dropped and it returns no token, though the host does not know yet; others go on."""
    token = best_token(PROMPT)
    fields = {"stop": {"stop_ids": (token,)}, "length": {"budget": 1}, "frozen": {}}[end]
    output = run(runner, prefill(setup=setup(**fields)))
    expected = {"stop": Status.STOPPED, "length": Status.OUT_OF_BUDGET, "frozen": Status.RUNNING}[end]
    assert (output.tokens[0, 0], output.num_tokens[0], output.status[0]) == (token, 1, expected)
    run(runner, prefill((9, 9), row=0, page=4, setup=setup((9, 9))))

    before = snapshot(runner)
    output = run(runner, decode(1, 0, frozen=(end == "frozen", False)))
    assert output.num_tokens.tolist() == [0, 1, 0, 0] and output.status.tolist() == [0, 0, 0, 0]
    assert changed(before, snapshot(runner)) == {(4, 2)}
    again = run(runner, decode(1, 0))  # frozen once is frozen for good
    assert again.num_tokens.tolist() == [0, 1, 0, 0]
    assert changed(before, snapshot(runner)) == {(4, 2), (4, 3)}
    row = snapshot(runner).rows[1]
    assert (row[LENGTH], row[LAST_TOKEN], row[FINISHED]) == (len(PROMPT), token, 1)


def test_a_stop_id_that_is_the_last_token_stops(runner):
    """Both ends come with one token: the stop id is the reason."""
    output = run(runner, prefill(setup=setup(stop_ids=(best_token(PROMPT),), budget=1)))
    assert output.status[0] == Status.STOPPED


def test_a_row_may_be_begun_again(runner):
    run(runner, prefill(setup=setup(budget=1)))
    output = run(runner, prefill((9, 9), row=1, page=6, setup=setup((9, 9))))
    assert output.status[0] == Status.RUNNING
    assert run(runner, decode(1)).num_tokens[0] == 1


def test_min_tokens_bans_stop_ids_on_the_device(runner):
    token = best_token(PROMPT)
    output = run(runner, prefill(setup=setup(stop_ids=(token,), min_left=1)))
    assert output.tokens[0, 0] != token and output.status[0] == Status.RUNNING
    after = snapshot(runner)
    assert after.rows[1][RowSetup._fields.index("min_left")] == 0


def test_the_slot_of_a_row_does_not_matter(runner):
    """Bit for bit: the state after a step is the same in whichever slots its rows are."""
    states = []
    for order in ((1, 0, 2), (2, 1, 0)):
        reset(runner)
        for row in range(3):
            prompt = tuple(range(row, row + 4 + row))
            run(runner, prefill(prompt, row=row, page=3 + row, setup=setup(prompt)))
        for _ in range(3):
            run(runner, decode(*order))
        states.append(snapshot(runner))
    assert equal(*states)


def test_the_output_is_one_small_array(runner):
    handle = runner.submit(pack(decode(), SHAPE))
    assert handle.output.shape == (DECODE.slots, 3) and handle.output.dtype == np.int32
