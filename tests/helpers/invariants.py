"""What must hold of a scheduler after every step."""

from __future__ import annotations

import functools

from jbatch.host.metrics import StepRecord
from jbatch.host.plan import StepPlan, align
from jbatch.host.request import Sequence
from jbatch.host.scheduler import Progress, Scheduler, StepLimits
from jbatch.sampling_params import Sampler


@functools.cache
def _numbers(begin: int, end: int) -> frozenset[int]:
    return frozenset(range(begin, end))


def check_invariants(scheduler: Scheduler) -> None:
    """Pages, rows and sequences add up. Holds between any two calls."""
    check_pages(scheduler)
    config, running = scheduler.config, scheduler.running
    rows = [sequence.row for sequence in running]
    places = rows + scheduler._free_rows
    assert len(places) == config.num_rows, "a row is lost or held twice"
    assert set(places) == _numbers(0, config.num_rows), "a row is lost or held twice"
    assert len(running) <= 1 or not config.admission.one_by_one
    samplers = [sequence.request.params.sampler for sequence in running]
    assert scheduler._num_sampler == [samplers.count(sampler) for sampler in Sampler]

    queued = {seq_id for _, seq_id in scheduler._waiting}
    running_ids = {sequence.seq_id for sequence in running}
    waiting_ids = scheduler._sequences.keys() - running_ids
    assert running_ids <= scheduler._sequences.keys(), "a sequence runs that is not known"
    assert waiting_ids <= queued and not running_ids & queued, "a sequence neither waits nor runs, or both"
    assert len(waiting_ids) == scheduler.num_waiting
    for sequence in scheduler._sequences.values():
        _check_sequence(sequence, scheduler)
    assert scheduler.has_unfinished == bool(scheduler._sequences)


def check_pages(scheduler: Scheduler) -> None:
    """Each page is free or owned by one sequence; page 0 is neither."""
    pool = scheduler.pool
    owned = [page for sequence in scheduler.running for page in sequence.pages]
    pages = owned + pool._free
    assert len(pages) == pool.num_usable, "a page is lost, owned twice or free twice"
    assert set(pages) == _numbers(1, pool.num_pages), "a page is lost, owned twice or free twice"
    assert all(map(pool._ref_counts.__getitem__, owned)) and sum(pool._ref_counts) == len(owned)


def _check_sequence(sequence: Sequence, scheduler: Scheduler) -> None:
    most = max(sequence.max_len, sequence.num_prompt + 1)  # one that only scores its prompt draws too
    assert sequence.num_known <= sequence.num_planned <= most, "a token too many"
    if sequence.row < 0:
        assert not sequence.pages and not sequence.finished, "it waits with pages, or after its end"
        assert not sequence.num_cached and not sequence.decoding
        return
    assert len(sequence.pages) == scheduler.pool.pages_for(sequence.num_cached), "table and cache differ"
    assert not sequence.finished or scheduler.config.admission.hold_finished, "it runs after its end"
    if sequence.decoding:
        assert sequence.num_cached == sequence.num_planned - 1, "a token is planned from one not cached"
    else:
        assert sequence.num_cached < sequence.num_known == sequence.num_planned


def check_running(scheduler: Scheduler, before: tuple[Sequence, ...], limits: StepLimits) -> None:
    """What one call of `schedule` may do to the running sequences: preempt the youngest, admit the next."""
    after, admission = scheduler.running, scheduler.config.admission
    if after == before:
        return
    kept = 0
    while kept < min(len(before), len(after)) and before[kept] is after[kept]:
        kept += 1
    preempted, admitted = before[kept:], after[kept:]
    assert kept or not before, "the first admitted was preempted"
    assert not any(s.running for s in preempted), "one was preempted that is not the youngest"
    assert not preempted or not admission.hold_finished, "a padded batch was preempted"
    if not admitted:
        return
    assert admission.refill or not before, "one joined a static batch"
    assert len(after) <= limits.max_num_seqs, "more run than the limits allow"
    _check_order(scheduler, admitted)
    _check_claims(scheduler)


def _check_order(scheduler: Scheduler, admitted: tuple[Sequence, ...]) -> None:
    policy = scheduler.config.policy
    keys = [(policy(s.request), s.seq_id) for s in admitted]
    waiting = [(policy(s.request), s.seq_id) for s in scheduler._sequences.values() if not s.running]
    assert keys == sorted(keys) and (not waiting or keys[-1] < min(waiting)), "one overtook the first in line"


def _check_claims(scheduler: Scheduler) -> None:
    """Those that are not yet decoding can reach their first token (padded: their end) on free pages."""
    hold, pool = scheduler.config.admission.hold_finished, scheduler.pool
    claims = 0
    for s in scheduler.running:
        if hold or not s.decoding:
            most = s.max_len if hold else min(s.max_len, s.num_known + 1)
            claims += pool.pages_for(most) - len(s.pages)
    assert claims <= pool.num_free, "more was admitted than the pool can take"


def check_plan(scheduler: Scheduler, plan: StepPlan, limits: StepLimits) -> None:
    """A plan keeps the budgets, takes the smallest bucket, and speaks of what runs."""
    config, used, bucket = scheduler.config, len(plan.seq_ids), plan.bucket
    prefill = bucket.kind == "prefill"
    sizes = [len(chunk.token_ids) for chunk in plan.chunks]
    num_tokens = sum(map(align, sizes)) if prefill else used
    assert used and min(sizes, default=1) > 0 and len(set(plan.seq_ids)) == used
    assert sum(sizes) <= limits.max_num_batched_tokens
    fits = config.prefill_buckets if prefill else config.decode_buckets
    assert bucket == next(b for b in fits if b.slots >= used and b.tokens >= num_tokens)
    sequences = [scheduler._sequences[seq_id] for seq_id in plan.seq_ids]
    assert list(plan.rows) == [sequence.row for sequence in sequences]
    samplers = [sequence.request.params.sampler for sequence in scheduler.running]
    assert plan.sampler == max(samplers, default=Sampler.GREEDY)
    tables = {sequence.row: sequence.pages for sequence in sequences}
    assert all(tables[row][idx] == page for row, idx, page in plan.table_updates), "a table entry is wrong"


def check_record(record: StepRecord, progress: list[Progress]) -> None:
    """The account is closed."""
    assert record.useful + record.padded + record.wasted + record.recomputed == record.computed
    assert min(record.useful, record.padded, record.wasted, record.recomputed) >= 0
    assert record.useful + record.wasted + record.recomputed > 0, "a step without work"
    assert record.output_tokens == sum(len(token_ids) for _, token_ids in progress)
