"""Samples of one prompt, told as schedules: what is computed, what is shared, and what is copied."""

import pytest

from jbatch.host.limits import StepLimits
from jbatch.host.pack import pack
from jbatch.outputs import FinishReason
from jbatch.sim.fake_runner import FakeRunner
from tests.helpers.driver import Driver
from tests.helpers.schedules import VOCAB_SIZE, buckets, request, scheduler_config

TOKENS = (16, 32, 64, 128, 256)


def driver_of(mode="continuous", limits=None, depth=1, **changes):
    options = {"num_rows": 16, "num_pages": 200, "buckets": buckets(TOKENS, (1, 4, 16), mode)}
    config = scheduler_config(mode, **(options | {"enable_prefix_caching": False} | changes))
    return Driver(config, depth=depth, limits=limits)


def run(driver):
    """The plans, until all have ended with the tokens of the definition."""
    plans = []
    while driver.scheduler.has_unfinished or driver.in_flight:
        plans += [plan] if (plan := driver.step()) else []
    driver.check_end()
    return plans


def prompt_tokens(plans):
    return sum(len(chunk.token_ids) for plan in plans for chunk in plan.chunks)


def copies(plans):
    return [copy for plan in plans for copy in plan.page_copies]


@pytest.mark.parametrize("mode", ["continuous", "static", "static-padded"])
@pytest.mark.parametrize("n", [1, 4, 16])
@pytest.mark.parametrize("length", [100, 96])
def test_n_samples_cost_one_prompt_and_its_full_pages_once(mode, n, length):
    """7 pages hold 100 tokens: 6 are shared for good, and the partial one is copied by all but one."""
    driver = driver_of(mode)
    driver.submit(request([7] * length, 4), n=n)
    plan = driver.step()
    (chunk,) = plan.chunks
    assert (len(chunk.token_ids), len(chunk.draws)) == (length, n)
    assert driver.scheduler.pool.num_used == -(-length // 16)
    plans = [plan, second := driver.step()]
    assert driver.scheduler.pool.num_used == 6 + n and len(second.seq_ids) == n
    plans += run(driver)
    assert prompt_tokens(plans) == length
    assert len(copies(plans)) == len(copies([second])) == (n - 1 if length % 16 else 0)
    assert sum(record.useful_tokens for record in driver.records) == length
    assert sum(record.recomputed for record in driver.records) == 0


def test_a_prompt_in_several_chunks_is_shared_once_the_last_one_is_planned():
    """Whoever comes behind waits until then, too."""
    driver = driver_of(limits=lambda view: StepLimits(32, 16))
    driver.submit(request([7] * 100, 3), n=3)
    other = driver.submit(request([8] * 5, 3))
    plans = run(driver)
    assert [len(chunk.draws) for plan in plans[:4] for chunk in plan.chunks if chunk.seq_id == 0] == [
        0,
        0,
        0,
        3,
    ]
    assert not any(chunk.seq_id == other.seq_id for plan in plans[:3] for chunk in plan.chunks)
    assert prompt_tokens(plans) == 105


def test_samples_that_start_later_compute_the_last_token():
    """Two rows for four samples: as each of the first ones ends, another one takes its place."""
    driver = driver_of(num_rows=2, buckets=buckets(TOKENS, (1, 2)))
    family = driver.submit(request([7] * 100, 20), n=4).family
    plans = []
    for early in family[:2]:
        plans += [driver.step() for _ in range(4)]
        driver.end(early, FinishReason.ABORT)
    plans += run(driver)
    chunks = [(chunk.seq_id, chunk.start, chunk.end) for plan in plans for chunk in plan.chunks]
    assert chunks == [(0, 0, 100), (2, 99, 100), (3, 99, 100)]
    assert sum(record.recomputed for record in driver.records) == 2
    assert len(copies(plans)) == 3


@pytest.mark.parametrize("prefix_caching, start", [(True, 96), (False, 0)])
def test_samples_that_start_when_none_runs(prefix_caching, start):
    """Only the cache knows of their pages."""
    driver = driver_of(num_rows=2, buckets=buckets(TOKENS, (1, 2)), enable_prefix_caching=prefix_caching)
    driver.submit(request([7] * 100, 6), n=4)
    chunks = [(chunk.seq_id, chunk.start, len(chunk.draws)) for plan in run(driver) for chunk in plan.chunks]
    assert chunks == [(0, 0, 2), (2, start, 2)]


def test_more_samples_than_a_step_draws_for():
    """A step of 32 tokens has two draws; the others begin behind the prompt in the next ones, two by two."""
    driver = driver_of(buckets=buckets((32,), (1, 4, 16)))
    driver.submit(request([7] * 20, 30), n=5)
    plans = run(driver)
    assert [(len(chunk.token_ids), len(chunk.draws)) for plan in plans for chunk in plan.chunks] == [
        (20, 2),
        (1, 2),
        (1, 1),
    ]
    assert len(copies(plans)) == 4


def test_samples_of_one_token_end_with_the_prompts_chunk():
    driver = driver_of()
    driver.submit(request([7] * 20, 1), n=6)
    plans = run(driver)
    assert len(plans) == 1 and not copies(plans) and prompt_tokens(plans) == 20


def test_preempting_one_sample_keeps_what_the_others_share():
    """It comes back behind the prompt, with its own output to be read again."""
    driver = driver_of()
    family = driver.submit(request([7] * 40, 12), n=3).family
    for _ in range(5):
        driver.step()
    last, shared = family[2], family[0].pages[:2]
    driver.scheduler.lifecycle.preempt(last)
    assert [driver.scheduler.pool.ref_count(page) for page in shared] == [2, 2]
    plans = run(driver)
    (chunk,) = (chunk for plan in plans for chunk in plan.chunks)
    assert (chunk.seq_id, chunk.start, len(chunk.token_ids)) == (last.seq_id, 40, 5)


@pytest.mark.parametrize("steps_before", range(5))
@pytest.mark.parametrize("limit", [16, 256])
def test_the_first_sample_may_end_at_any_time(steps_before, limit):
    """While its prompt is read, with its last chunk, and behind it: another one takes over."""
    driver = driver_of(limits=lambda view: StepLimits(limit, 16))
    family = driver.submit(request([7] * 60, 6), n=4).family
    for _ in range(steps_before):
        driver.step()
    driver.end(family[0], FinishReason.ABORT)
    run(driver)
    assert [len(sample.output_token_ids) for sample in family[1:]] == [6, 6, 6]


def test_the_last_owner_of_a_page_writes_to_it():
    """The others have ended before they wrote: nothing is copied."""
    driver = driver_of(depth=0)
    family = driver.submit(request([7] * 20, 6), n=3).family
    driver.step()
    for sample in family[:2]:
        driver.end(sample, FinishReason.ABORT)
    assert not copies(run(driver))


def test_pages_are_not_shared_with_what_begins_under_other_weights():
    driver = driver_of()
    family = driver.submit(request([7] * 40, 20), n=20).family
    driver.step()
    driver.step()
    driver.scheduler.weights_changed()
    driver.end(family[0], FinishReason.ABORT)
    chunk = next(plan.chunks[0] for plan in iter(driver.step, None) if plan.chunks)
    assert (chunk.seq_id, chunk.start) == (family[16].seq_id, 0)
    run(driver)


def test_samples_that_all_lost_their_pages_share_them_again():
    """One reads the prompt and its output; the others wait for that step, and read their output behind it."""
    driver = driver_of()
    driver.submit(request([7] * 20, 12), n=3)
    for _ in range(4):
        driver.step()
    driver.update()
    plans = run(driver)
    chunks = [[(c.seq_id, c.start, c.end) for c in plan.chunks] for plan in plans if plan.chunks]
    assert chunks == [[(0, 0, 24)], [(1, 20, 24), (2, 20, 24)]]


def test_64_samples_of_a_long_prompt_on_a_pool_that_holds_few_of_them():
    """Each reads 4,096 tokens, and the pool holds 16,000: a step takes three, and each has its turn."""
    sizes = {"num_rows": 64, "num_pages": 1000, "max_model_len": 4608}
    driver = driver_of(buckets=buckets((1024,), (64,)), **sizes)
    family = driver.submit(request([7] * 4096, 4), n=64).family
    plans = run(driver)
    assert prompt_tokens(plans) == 4096
    assert max(len(plan.seq_ids) for plan in plans) == 3 and len(family) == 64


def test_a_table_of_a_sample_goes_up_whole():
    driver = driver_of()
    driver.submit(request([7] * 100, 4), n=3)
    plan = driver.scheduler.schedule(0.0)
    first, *others = driver.scheduler.running
    assert [table.row for table in plan.tables] == [sample.row for sample in others]
    assert all(table.page_ids == tuple(first.pages) for table in plan.tables)
    runner = FakeRunner(driver.config.shape, VOCAB_SIZE)
    runner.submit(pack(plan, driver.config.shape))
    assert runner._tables[others[0].row, :7].tolist() == first.pages
