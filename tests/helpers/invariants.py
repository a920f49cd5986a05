"""What must hold of a scheduler after every step."""

from __future__ import annotations

from collections import Counter

from jbatch.scheduler import Scheduler


def check_invariants(scheduler: Scheduler) -> None:
    """Raise AssertionError for any broken invariant."""
    pool, config = scheduler.pool, scheduler.config
    running = scheduler.running
    owners = Counter(page for sequence in running for page in sequence.pages)
    free = pool._free
    assert len(set(free)) == len(free), "a page is free twice"
    assert not set(free) & set(owners), "a page is free and owned"
    assert len(free) + len(owners) == pool.num_usable, "a page is lost"
    assert 0 not in owners and 0 not in free, "the null page is in use"
    assert all(pool.ref_count(page) == count == 1 for page, count in owners.items()), "a page is owned twice"

    rows = [sequence.row for sequence in running]
    assert len(set(rows)) == len(rows) and sorted(rows + scheduler._free_rows) == list(range(config.num_rows))
    assert len(running) <= (1 if config.admission.one_by_one else config.num_rows)

    num_waiting = 0
    for sequence in scheduler._sequences.values():
        assert sequence.num_known <= sequence.num_planned + sequence.decoding
        assert sequence.num_planned <= sequence.max_len
        if sequence.running:
            assert len(sequence.pages) == pool.pages_for(sequence.num_cached), "table does not cover the cache"
            assert sequence in running
            if sequence.decoding:
                assert sequence.num_cached == sequence.num_planned - 1
        else:
            num_waiting += 1
            assert not sequence.pages and not sequence.finished and not sequence.num_cached
    assert num_waiting == scheduler.num_waiting
    if not scheduler.has_unfinished:
        assert pool.num_free == pool.num_usable and not scheduler._sequences, "idle, but not empty"
