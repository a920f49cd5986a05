"""Lengths: what is planned, and what came back."""

import dataclasses

from jbatch.host.limits import StepLimits
from jbatch.host.plan import TableUpdate
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.seam.bucket import Bucket
from jbatch.seam.step_output import Status
from tests.helpers.invariants import check_invariants
from tests.helpers.plans import came_back, show
from tests.helpers.schedules import request, scheduler_config


def lengths(sequence):
    """What is so, and what will be at most: known and planned, cached and planned to be."""
    return (
        (sequence.num_known, sequence.num_planned),
        (sequence.num_cached, sequence.num_cached_planned),
    )


def test_lengths_are_of_what_landed():
    """A prompt in three chunks, all under way at once, and a decoding step behind them."""
    scheduler = Scheduler(scheduler_config(), lambda view: StepLimits(16, 4))
    a = scheduler.add(request(range(1, 41), 9))
    plans = [scheduler.schedule(0.0) for _ in range(4)]
    assert [show(plan) for plan in plans] == [
        "prefill 32: a[0:16]", "prefill 32: a[16:32]", "prefill 32: a[32:40]!", "decode 1: a",
    ]  # fmt: skip
    assert lengths(a) == ((40, 42), (0, 41))
    seen = []
    for plan, tokens in zip(plans, ([], [], [7], [8]), strict=True):
        came_back(scheduler, plan, tokens)
        check_invariants(scheduler)
        seen.append(lengths(a))
    assert seen == [((40, 42), (16, 41)), ((40, 42), (32, 41)), ((41, 42), (40, 41)), ((42, 42), (41, 41))]


def test_a_draw_without_a_token_is_taken_back_and_planned_again():
    scheduler = Scheduler(scheduler_config())
    a = scheduler.add(request([1, 2, 3], 9))
    came_back(scheduler, scheduler.schedule(0.0), [7])
    first = scheduler.schedule(0.0)
    assert show(first) == "decode 1: a" and lengths(a) == ((4, 5), (3, 4))
    progress, record = came_back(scheduler, first, [])
    assert progress == [(a, [])] and (record.output_tokens, record.useful) == (0, 1)
    assert lengths(a) == ((4, 4), (3, 3)) and not a.finished
    check_invariants(scheduler)
    again = scheduler.schedule(0.0)
    assert dataclasses.replace(again, step_idx=first.step_idx) == first and lengths(a) == ((4, 5), (3, 4))
    came_back(scheduler, again, [8])
    assert a.output_token_ids == [7, 8] and lengths(a) == ((5, 5), (4, 4))


def test_a_draw_without_a_token_while_the_next_step_is_under_way():
    """b's tokens come as ever; a is one behind, and its budget is no smaller for that."""
    scheduler = Scheduler(scheduler_config())
    a, b = (scheduler.add(request([1, 2, 3], 4)) for _ in range(2))
    plans = [scheduler.schedule(0.0) for _ in range(3)]
    assert lengths(a) == lengths(b) == ((3, 6), (0, 5))
    for plan, results in zip(plans, (([7], [7]), ([], [8]), ([8], [9])), strict=True):
        came_back(scheduler, plan, *results)
        check_invariants(scheduler)
    assert lengths(a) == ((5, 5), (4, 4)) and lengths(b) == ((6, 6), (5, 5))
    assert show(scheduler.schedule(0.0)) == "decode 2: a b" and lengths(a) == ((5, 6), (4, 5))


def test_a_row_is_free_for_the_next_step_once_its_last_token_is_planned():
    """b takes a's row and its page in the step behind, before a's last token is there."""
    scheduler = Scheduler(scheduler_config(num_rows=1, num_pages=2))
    a, b = scheduler.add(request([1, 2, 3], 2)), scheduler.add(request([1, 2], 1))
    plans = [scheduler.schedule(0.0) for _ in range(3)]
    assert [show(plan) for plan in plans] == ["prefill 32: a[0:3]!", "decode 1: a", "prefill 32: b[0:2]!"]
    assert {plans[1].rows[0], plans[2].chunks[0].row} == {0} and scheduler.pool.num_used == 0
    assert scheduler.schedule(0.0) is None and scheduler.has_unfinished
    for plan, token in zip(plans, (7, 8, 9), strict=True):
        check_invariants(scheduler)
        came_back(scheduler, plan, [token], statuses=(Status.OUT_OF_BUDGET * (token > 7),))
    assert (a.output_token_ids, b.output_token_ids) == ([7, 8], [9]) and not scheduler.has_unfinished


def test_one_that_left_for_a_token_that_did_not_come_is_computed_again():
    scheduler = Scheduler(scheduler_config())
    a = scheduler.add(request([1, 2, 3], 3))
    plans = [scheduler.schedule(0.0) for _ in range(3)]
    assert a.leaving and lengths(a) == ((3, 6), (0, 0))
    for plan, results in zip(plans, ([7], [], [8]), strict=True):
        assert scheduler.schedule(0.0) is None
        came_back(scheduler, plan, results)
        check_invariants(scheduler)
    again = scheduler.schedule(0.0)
    assert show(again) == "prefill 32: a[0:5]!" and again.chunks[0].num_recomputed == 4
    came_back(scheduler, again, [9], statuses=(Status.OUT_OF_BUDGET,))
    assert a.output_token_ids == [7, 8, 9] and not scheduler.has_unfinished


def test_a_draw_without_a_token_keeps_the_page_that_it_was_given():
    """The fifth token begins a page of 4: the next plan finds it in the table."""
    scheduler = Scheduler(scheduler_config(page_size=4))
    a = scheduler.add(request([1, 2, 3, 4], 9))
    came_back(scheduler, scheduler.schedule(0.0), [7])
    first = scheduler.schedule(0.0)
    assert first.table_updates == (TableUpdate(0, 1, 2),)
    came_back(scheduler, first, [])
    assert scheduler.schedule(0.0).table_updates == () and a.pages == [1, 2]
    check_invariants(scheduler)


def test_a_mixed_step_gives_the_draws_of_slots_and_then_those_of_chunks():
    """b decodes in front; behind, c's prompt ends and d's begins."""
    scheduler = Scheduler(scheduler_config(), lambda view: StepLimits(24, 4))
    ended, b = (scheduler.add(request([1, 2, 3], 9)) for _ in range(2))
    came_back(scheduler, scheduler.schedule(0.0), [4], [5])
    c, d = scheduler.add(request([1, 2], 9)), scheduler.add(request([1] * 30, 9))
    mixed = scheduler.schedule(0.0)
    assert show(mixed) == "mixed 32: a b c[0:2]! d[0:16]" and mixed.bucket == Bucket(4, 32)
    scheduler.finish(ended, FinishReason.ABORT)
    progress, record = came_back(scheduler, mixed, [6], [7], [8])
    assert progress == [(b, [7]), (c, [8])] and (b.num_cached, c.num_cached, d.num_cached) == (4, 2, 16)
    assert (record.kind, record.slots, record.slots_used, record.tokens) == ("mixed", 4, 2, 32)
    assert (record.useful_slots, record.useful_tokens, record.wasted, record.padded) == (1, 18, 1, 16)
    assert (record.computed, record.output_tokens) == (36, 2)
    check_invariants(scheduler)


def test_a_chunk_counts_as_long_as_someone_draws_from_it():
    """The prompt that a and b share is a's; a is aborted, and then b."""
    scheduler = Scheduler(scheduler_config())
    a, b = (scheduler.add(request([1, 2, 3], 9)) for _ in range(2))
    plan = scheduler.schedule(0.0)
    first, second = plan.chunks
    shared = dataclasses.replace(plan, chunks=(first._replace(draws=first.draws + second.draws),))
    scheduler.finish(a, FinishReason.ABORT)
    progress, record = came_back(scheduler, shared, [7], [8])
    assert progress == [(b, [8])] and (record.useful_tokens, record.wasted) == (3, 0)
    scheduler.finish(b, FinishReason.ABORT)
    progress, record = came_back(scheduler, shared, [7], [8])
    assert progress == [] and (record.useful_tokens, record.wasted) == (0, 3)


def test_a_preempted_sequences_chunk_of_an_earlier_attempt_sets_no_length():
    """Five pages of 4 tokens, and ten steps under way: a grows to four, which takes b's two. a is aborted,
    and b begins again with half of the chunk that now lands."""
    budget = [16]
    scheduler = Scheduler(
        scheduler_config(num_rows=2, num_pages=6, page_size=4), lambda view: StepLimits(budget[0], 2)
    )
    a, b = scheduler.add(request([1] * 4, 16)), scheduler.add(request([2] * 10, 1))
    plans = [scheduler.schedule(0.0)]
    assert show(plans[0]) == "prefill 32: a[0:4]! b[0:8]"
    budget[0] = 0
    plans += [scheduler.schedule(0.0) for _ in range(9)]
    assert plans[-1].preempted == (b.seq_id,) and len(a.pages) == 4
    scheduler.finish(a, FinishReason.ABORT)
    budget[0] = 4
    again = scheduler.schedule(0.0)
    assert show(again) == "prefill 32: b[0:4]" and again.chunks[0].attempt == 1
    for plan in plans:
        came_back(scheduler, plan)
        assert lengths(b) == ((10, 10), (0, 4))
        check_invariants(scheduler)
    came_back(scheduler, again)
    assert lengths(b) == ((10, 10), (4, 4))
