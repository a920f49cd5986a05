"""The page pool against a dictionary of reference counts."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jbatch.host.pages import NULL_PAGE, PagePool
from tests.helpers.sizes import sized


class PoolMachine(RuleBasedStateMachine):
    @initialize(num_pages=st.integers(2, 12), page_size=st.sampled_from([1, 4, 16]))
    def build(self, num_pages, page_size):
        self.pool = PagePool(num_pages, page_size)
        self.owners: dict[int, int] = {}

    def some_pages(self, data):
        return data.draw(st.lists(st.sampled_from(sorted(self.owners)), unique=True))

    @rule(count=st.integers(0, 12))
    def allocate(self, count):
        num_free = self.pool.num_usable - len(self.owners)
        assert self.pool.can_allocate(count) == (count <= num_free)
        if count > num_free:
            with pytest.raises(RuntimeError, match=f"{count} pages asked for, {num_free} free"):
                self.pool.allocate(count)
            return
        taken = self.pool.allocate(count)
        assert len(set(taken)) == count and not self.owners.keys() & set(taken)
        self.owners |= dict.fromkeys(taken, 1)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def share(self, data):
        pages = self.some_pages(data)
        self.pool.share(pages)
        for page in pages:
            self.owners[page] += 1

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def free(self, data):
        pages = self.some_pages(data)
        self.pool.free(pages)
        for page in pages:
            self.owners[page] -= 1
            if not self.owners[page]:
                del self.owners[page]

    @rule(data=st.data())
    def misuse_a_free_page(self, data):
        page = data.draw(st.sampled_from([p for p in range(self.pool.num_pages) if p not in self.owners]))
        with pytest.raises(RuntimeError, match=f"page {page} freed twice"):
            self.pool.free([page])
        with pytest.raises(RuntimeError, match=f"page {page} is free"):
            self.pool.share([page])

    @invariant()
    def pages_are_conserved(self):
        pool = self.pool
        assert pool.num_free + pool.num_used == pool.num_usable == pool.num_pages - 1
        assert pool.num_used == len(self.owners)
        assert {page: pool.ref_count(page) for page in self.owners} == self.owners
        assert sorted([*pool._free, *self.owners]) == list(range(1, pool.num_pages))
        assert NULL_PAGE not in self.owners and pool.ref_count(NULL_PAGE) == 0


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=sized(100, 300),
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
