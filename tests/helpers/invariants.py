"""What must hold of a scheduler after every step."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable

import numpy as np

from jbatch.host.landing import Progress
from jbatch.host.limits import StepLimits
from jbatch.host.metrics import StepRecord
from jbatch.host.plan import StepPlan
from jbatch.host.request import Sequence
from jbatch.host.scheduler import Scheduler
from jbatch.host.waiting import TRIES
from jbatch.sampler import Sampler
from jbatch.seam.bucket import align, room_of


@functools.cache
def _numbers(begin: int, end: int) -> frozenset[int]:
    return frozenset(range(begin, end))


def check_invariants(scheduler: Scheduler) -> None:
    """Pages, rows and sequences add up. Holds between any two calls."""
    check_pages(scheduler)
    config, running = scheduler.config, scheduler.running
    rows = [sequence.row for sequence in running]
    places = rows + scheduler.holdings._free_rows
    assert len(places) == config.shape.num_rows, "a row is lost or held twice"
    assert set(places) == _numbers(0, config.shape.num_rows), "a row is lost or held twice"
    assert len(running) <= 1 or not config.admission.one_by_one
    samplers = [sequence.request.params.sampler for sequence in running]
    assert scheduler.holdings._num_sampler == {sampler: samplers.count(sampler) for sampler in Sampler}

    queued = {sequence.seq_id for sequence in scheduler.lifecycle.waiting}
    running_ids = {sequence.seq_id for sequence in running}
    leaving_ids = {sequence.seq_id for sequence in scheduler.lifecycle.sequences.values() if sequence.leaving}
    assert not leaving_ids & (running_ids | queued), "it gave up its row, and waits or runs"
    waiting_ids = scheduler.lifecycle.sequences.keys() - running_ids - leaving_ids
    assert running_ids <= scheduler.lifecycle.sequences.keys(), "a sequence runs that is not known"
    assert waiting_ids == queued, "a sequence neither waits nor runs, or both"
    assert len(waiting_ids) == scheduler.num_waiting
    for sequence in scheduler.lifecycle.sequences.values():
        _check_sequence(sequence, scheduler)
    assert scheduler.has_unfinished == bool(scheduler.lifecycle.sequences)


def check_pages(scheduler: Scheduler) -> None:
    """Each page is free or owned, as often as it is counted; page 0 is neither."""
    pool = scheduler.pool
    owned = Counter(page for sequence in scheduler.running for page in sequence.pages)
    owned.update(page for pages in scheduler.holdings.held.values() for page in pages)
    pages = [*owned, *pool._free]
    assert len(pages) == pool.num_usable, "a page is lost, or owned and free"
    assert set(pages) == _numbers(1, pool.num_pages), "a page is lost, or owned and free"
    counts = {page: count for page, count in enumerate(pool._ref_counts) if count}
    assert counts == owned, "a page is counted for owners that it does not have"


class PrefixWatch:
    """Looks whether pages that are found hold the tokens that they are found by, while a scheduler runs."""

    def __init__(self) -> None:
        self._tokens: dict[bytes, tuple[int, ...]] = {}  # of the page that a digest stands for
        self._noted: dict[int, tuple[bytes, ...]] = {}  # by seq_id: digests that are known

    def check(self, scheduler: Scheduler, sequences: Iterable[Sequence], cache: np.ndarray) -> None:
        """`cache` has what a device would have in its pages: the token ids."""
        page_size, index = scheduler.pool.page_size, scheduler.holdings.prefixes
        for sequence in sequences:
            digests = tuple(sequence.digests)
            if self._noted.get(sequence.seq_id) != digests:
                self._noted[sequence.seq_id] = digests
                for idx, digest in enumerate(digests):
                    held = tuple(sequence.token_ids[idx * page_size : (idx + 1) * page_size])
                    assert self._tokens.setdefault(digest, held) == held, "two pages of one digest"
        assert index._pages == {d: page for page, d in enumerate(index._digests) if d is not None}
        assert scheduler.config.enable_prefix_caching or not len(index)
        pages = list(index._pages.values())
        for digest, held in zip(index._pages, cache[pages].tolist(), strict=True):
            assert tuple(held) == self._tokens[digest], "a page is found that holds other tokens"
        for sequence in scheduler.running:  # steps may write from here on
            sampled = len(sequence.family) > 1  # then one of them writes the prompt
            begin = max(sequence.num_cached, sequence.num_prompt if sampled else 0)
            for page in sequence.pages[begin // page_size :]:
                if not sequence.forked:  # else the page is copied before it is written to
                    assert not index.holds(page), "a page is found that is written to"
                    assert scheduler.pool.ref_count(page) == 1, "a page with two writers"


def dead_pages(scheduler: Scheduler) -> list[int]:
    """Free pages that nobody will read as they are: none is found, or left to steps under way."""
    pool, holdings = scheduler.pool, scheduler.holdings
    left = {
        left.page_id
        for sequence in scheduler.lifecycle.sequences.values()
        for left in sequence.left_pages
        if holdings._is_as_left(left)
    }
    return [page for page in pool._free if not holdings.prefixes.holds(page) and page not in left]


def _check_sequence(sequence: Sequence, scheduler: Scheduler) -> None:
    assert sequence.num_known <= sequence.num_planned <= sequence.max_len, "a token too many"
    assert sequence.num_cached <= sequence.num_cached_planned, "cached, and not planned"
    if sequence.row < 0:
        assert not sequence.pages and not sequence.finished, "it waits with pages, or after its end"
        assert not sequence.num_cached_planned and not sequence.decoding
        assert not sequence.leaving or sequence.num_planned == sequence.max_len, "it left before its end"
        return
    planned = sequence.num_cached_planned
    assert len(sequence.pages) == scheduler.pool.pages_for(planned), "table and cache differ"
    assert not sequence.finished or scheduler.config.admission.hold_finished, "it runs after its end"
    if sequence.decoding:
        assert planned == sequence.num_planned - 1, "a token is planned from one not cached"
    else:
        grows = sequence.max_len > sequence.num_prompt  # else its prompt is scored, and no more
        assert planned + grows <= sequence.num_known == sequence.num_planned


def check_running(scheduler: Scheduler, before: tuple[Sequence, ...], limits: StepLimits) -> None:
    """What one call of `schedule` may do to the running sequences: preempt some, admit the next."""
    after, admission = scheduler.running, scheduler.config.admission
    left = [sequence for sequence in before if sequence.leaving]
    before = tuple(sequence for sequence in before if not sequence.leaving)
    assert not left or admission.refill, "a static batch was left before its results were there"
    if after == before:
        return
    kept = tuple(sequence for sequence in before if sequence.running)
    preempted, admitted = set(before) - set(kept), after[len(kept) :]
    assert after[: len(kept)] == kept, "the order of admission has changed, or one came back at once"
    assert left or not before or kept[:1] == before[:1], "the first admitted was preempted"
    _check_victims(scheduler, before)
    assert not preempted or not admission.hold_finished, "a padded batch was preempted"
    if not admitted:
        return
    assert admission.refill or not before, "one joined a static batch"
    assert len(after) <= limits.max_num_seqs, "more run than the limits allow"
    _check_order(scheduler, admitted)
    _check_claims(scheduler)


def _check_victims(scheduler: Scheduler, before: tuple[Sequence, ...]) -> None:
    """Where one gave up its pages, no younger one that the policy would let run later has kept its own."""
    if scheduler.config.policy.rerank_steps:
        return  # keys of those that wait again may have changed since
    for idx, sequence in enumerate(before):
        if not sequence.running:
            younger = [other for other in before[idx + 1 :] if other.running]
            assert all(other.key < sequence.key for other in younger), "another should have been preempted"


def _check_order(scheduler: Scheduler, admitted: tuple[Sequence, ...]) -> None:
    if scheduler.config.policy.ageing:
        return  # tests/property/test_ageing.py
    keys = [(s.key, s.seq_id) for s in admitted]
    waiting = [
        (s.key, s.seq_id) for s in scheduler.lifecycle.sequences.values() if not (s.running or s.leaving)
    ]
    if scheduler.config.policy.rerank_steps:  # a user's tokens are counted with each admission
        keys, waiting = keys[:1], waiting if len(keys) == 1 and len(waiting) + 1 < TRIES else []
    assert keys == sorted(keys) and (not waiting or keys[-1] < min(waiting)), "one overtook the first in line"


def _check_claims(scheduler: Scheduler) -> None:
    """Those that are not yet decoding can reach their first token (padded: their end) on free pages."""
    hold, pool = scheduler.config.admission.hold_finished, scheduler.pool
    claims, copied = 0, Counter()
    for s in scheduler.running:
        if hold or not s.decoding:
            most = s.max_len if hold else min(s.max_len, s.num_known + 1)
            claims += pool.pages_for(most) - len(s.pages)
            if scheduler.holdings._must_copy(s):
                copied[s.pages[s.num_cached_planned // pool.page_size]] += 1
    claims += sum(
        min(count, pool.ref_count(page) - 1) for page, count in copied.items()
    )  # the last one writes
    assert claims <= pool.num_free, "more was admitted than the pool can take"


def check_plan(scheduler: Scheduler, plan: StepPlan, limits: StepLimits) -> None:
    """A plan keeps the budgets, takes the smallest bucket, and speaks of what runs."""
    config, room = scheduler.config, room_of(plan.bucket, scheduler.config.shape)
    seq_ids = [*plan.seq_ids, *(chunk.seq_id for chunk in plan.chunks)]
    sizes = [len(chunk.token_ids) for chunk in plan.chunks]
    assert seq_ids and min(sizes, default=1) > 0 and len(set(seq_ids)) == len(seq_ids)
    assert sum(sizes) <= limits.max_num_batched_tokens
    num_draws = sum(len(chunk.draws) for chunk in plan.chunks)
    needed = (len(plan.seq_ids), sum(map(align, sizes)), len(sizes), num_draws, len(plan.table_updates))
    sizes_of = (plan.bucket.slots, plan.bucket.tokens, room.chunks, room.chunk_draws, room.table_updates)
    assert all(need <= size for need, size in zip(needed, sizes_of, strict=True)), "too small a step"
    alone = not plan.chunks and not scheduler.num_waiting
    assert plan.bucket.steps == 1 or (alone and not plan.preempted), "others would have to wait"
    assert config.admission.refill or not (plan.seq_ids and plan.chunks), "a static batch is mixed"
    for smaller in config.buckets:
        if smaller.num_places < plan.bucket.num_places and smaller.steps == plan.bucket.steps:
            less = room_of(smaller, config.shape)
            sizes_of = (smaller.slots, smaller.tokens, less.chunks, less.chunk_draws, less.table_updates)
            assert any(need > size for need, size in zip(needed, sizes_of, strict=True)), "too large a step"
    rows = {seq_id: row for seq_id, row in zip(plan.seq_ids, plan.rows, strict=True)}
    rows |= {chunk.seq_id: chunk.row for chunk in plan.chunks}
    for chunk in plan.chunks:
        if chunk.draws:
            assert (chunk.draws[0].seq_id, chunk.draws[0].row) == (chunk.seq_id, chunk.row)
        joined = {draw.seq_id: draw.row for draw in chunk.draws[1:]}
        assert len(joined) == len(chunk.draws[1:]) and not joined.keys() & rows.keys(), "it draws twice"
        rows |= joined
    sequences = {scheduler.lifecycle.sequences[seq_id]: row for seq_id, row in rows.items()}
    assert len(set(rows.values())) == len(rows), "a row is used twice"
    assert all(sequence.leaving or sequence.row == row for sequence, row in sequences.items())
    live = {*scheduler.running, *(sequence for sequence in sequences if sequence.leaving)}
    samplers = [sequence.request.params.sampler for sequence in live]
    assert plan.sampler == functools.reduce(Sampler.union, samplers, Sampler.GREEDY)
    pages = {row: sequence.pages for sequence, row in sequences.items() if not sequence.leaving}
    pages |= {sequence.row: sequence.pages for sequence in scheduler.running}
    for row, page_idx, page_id in plan.table_updates:
        assert row not in pages or pages[row][page_idx] == page_id, "a table entry is wrong"
    updated = {(row, page_idx) for row, page_idx, _ in plan.table_updates}
    for row, page_ids in plan.tables:
        for page_idx, page_id in enumerate(page_ids):
            right = row not in pages or (row, page_idx) in updated or pages[row][page_idx] == page_id
            assert right, "a table is wrong"
    _check_writers(scheduler, plan)
    lengths = [s.num_cached_planned for s in sequences if s.seq_id in plan.seq_ids]
    most = config.shape.num_pages * config.shape.page_size
    assert sum(lengths) <= most, "more than a kernel's work list has room for"


def _check_writers(scheduler: Scheduler, plan: StepPlan) -> None:
    """No step writes to a page that has another owner, but the one that computes a prompt for several."""
    pool = scheduler.pool
    spans = [(chunk.seq_id, chunk.start, chunk.end, len(chunk.draws) > 1) for chunk in plan.chunks]
    for seq_id in plan.seq_ids:
        sequence = scheduler.lifecycle.sequences[seq_id]
        if not sequence.finished and sequence.num_planned < sequence.max_len:
            end = sequence.num_cached_planned
            spans.append((seq_id, end - plan.bucket.steps, end, False))
    for seq_id, start, end, shared in spans:
        pages = scheduler.lifecycle.sequences[seq_id].pages  # one that leaves has none
        for page in pages[start // pool.page_size : pool.pages_for(end)]:
            assert shared or pool.ref_count(page) == 1, "a step writes to a page of others"
    targets = [copy.dst for copy in plan.page_copies]
    assert len({*targets}) == len(targets), "a page is copied to twice"
    assert not {*targets} & {copy.src for copy in plan.page_copies}, "copies depend on each other"


def check_record(record: StepRecord, progress: list[Progress]) -> None:
    """The account is closed."""
    assert record.useful + record.padded + record.wasted + record.recomputed == record.computed
    assert min(record.useful, record.padded, record.wasted, record.recomputed) >= 0
    assert record.useful + record.wasted + record.recomputed > 0, "a step without work"
    assert record.output_tokens == sum(len(token_ids) for _, token_ids in progress)
