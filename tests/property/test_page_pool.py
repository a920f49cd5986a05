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
        self.line = list(range(1, num_pages))  # of free pages, by when they were freed
        self.digests: dict[int, bytes] = {}  # by which pages are found

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
        expected = [page for page in self.line if page not in self.owners][:count]
        taken = self.pool.allocate(count)
        assert taken == expected, "the page freed first is the first to go"
        self.owners |= dict.fromkeys(taken, 1)
        for page in taken:
            self.digests.pop(page, None)

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
                self.line.remove(page)
                self.line.append(page)

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), name=st.integers(0, 9))
    def publish(self, data, name):
        page, digest = data.draw(st.sampled_from(sorted(self.owners))), bytes([name])
        self.pool.prefixes.publish(digest, page)
        if page not in self.digests and digest not in self.digests.values():
            self.digests[page] = digest

    @precondition(lambda self: self.digests)
    @rule(data=st.data())
    def find(self, data):
        """Free or not."""
        page = data.draw(st.sampled_from(sorted(self.digests)))
        assert self.pool.prefixes.find([self.digests[page], b"none"]) == [page]
        self.pool.share([page])
        self.owners[page] = self.owners.get(page, 0) + 1

    @rule()
    def forget(self):
        self.pool.prefixes.forget_all()
        self.digests.clear()

    @rule(data=st.data())
    def misuse_a_free_page(self, data):
        free = [page for page in range(self.pool.num_pages) if page not in self.owners]
        page = data.draw(st.sampled_from([page for page in free if page not in self.digests] or [0]))
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
        assert {page: d for page, d in enumerate(pool.prefixes._digests) if d is not None} == self.digests
        assert pool.prefixes._pages == {digest: page for page, digest in self.digests.items()}
        assert NULL_PAGE not in self.owners and pool.ref_count(NULL_PAGE) == 0


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=sized(100, 300),
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
