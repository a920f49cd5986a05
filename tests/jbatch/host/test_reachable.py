"""What a cache that forgets nothing would have found."""

import hashlib

import pytest

from jbatch.host import reachable
from jbatch.host.pack import pack
from jbatch.host.reachable import SeenPages
from jbatch.host.scheduler import Scheduler
from jbatch.sim.fake_runner import FakeRunner
from tests.helpers.schedules import VOCAB_SIZE, request, scheduler_config


def digests_of(*names):
    return [hashlib.sha256(str(name).encode()).digest() for name in names]


def test_only_a_whole_beginning_counts():
    seen = SeenPages()
    seen.add(digests_of(1, 2, 4))
    assert seen.num_seen(digests_of(1, 2, 3, 4)) == 2
    assert seen.num_seen(digests_of(3, 1)) == 0 and seen.num_seen([]) == 0


def test_its_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(reachable, "MAX_PAGES", 4)
    seen = SeenPages()
    for number in range(100):
        seen.add(digests_of(number))
        last = range(max(0, number - 3), number + 1)
        assert all(seen.num_seen(digests_of(recent)) for recent in last), "as many are there at least"
    assert sum(seen.num_seen(digests_of(number)) for number in range(100)) <= 8


@pytest.mark.parametrize("num_pages", [5, 17])
def test_it_does_not_depend_on_the_pool(num_pages):
    """Three prompts of three pages, twice: the second time two pages of each could be there (of exactly full
    pages the last one is computed), and in a small pool none is."""
    scheduler = Scheduler(scheduler_config(num_pages=num_pages, num_rows=1, max_model_len=64))
    runner = FakeRunner(scheduler.config.shape, VOCAB_SIZE)
    looked_up = found = reached = 0
    for turn in range(2):
        for number in range(3):
            scheduler.add(request([3 + number] * 48, 2, request_id=f"{turn} {number}"))
            while scheduler.has_unfinished:
                record = step(scheduler, runner)
                looked_up += record.looked_up
                found += record.found
                reached += record.reachable
    assert (looked_up, reached) == (6 * 48, 3 * 32)
    assert found == (0 if num_pages == 5 else 3 * 32)


def step(scheduler, runner):
    plan = scheduler.schedule(0.0)
    return scheduler.apply(plan, runner.submit(pack(plan, scheduler.config.shape, plan.sampler, ())))[1]
