"""PagePool, by hand. At random: tests/property/test_page_pool.py."""

import pytest

from jbatch.host.pages import PagePool


def test_a_pool_hands_out_each_page_once_and_never_the_null_page():
    pool = PagePool(num_pages=4, page_size=16)
    assert (pool.num_usable, pool.num_free, pool.num_used) == (3, 3, 0)
    assert pool.allocate(2) == [1, 2]
    assert (pool.num_free, pool.num_used) == (1, 2)
    assert pool.allocate(1) == [3]


def test_asking_for_too_much_takes_nothing():
    pool = PagePool(num_pages=4, page_size=16)
    assert pool.can_allocate(3) and not pool.can_allocate(4)
    with pytest.raises(RuntimeError, match="4 pages asked for, 3 free"):
        pool.allocate(4)
    assert pool.num_free == 3


def test_the_page_freed_first_is_reused_first():
    pool = PagePool(num_pages=5, page_size=16)
    pool.allocate(3)
    pool.free([3, 1])
    assert pool.allocate(3) == [4, 3, 1]


def test_a_free_page_that_is_found_may_be_shared_until_it_is_handed_out():
    pool = PagePool(num_pages=3, page_size=16)
    pages = pool.allocate(2)
    pool.prefixes.publish(b"first", pages[0])
    pool.free(pages)
    pool.share([pages[0]])
    assert (pool.num_free, pool.ref_count(pages[0]), pool.prefixes.holds(pages[0])) == (1, 1, True)
    pool.free([pages[0]])
    assert pool.allocate(2) == [pages[1], pages[0]], "it was freed again after the other"
    assert not pool.prefixes.holds(pages[0]) and len(pool.prefixes) == 0


def test_a_page_is_as_it_was_until_it_is_handed_out():
    pool = PagePool(num_pages=3, page_size=16)
    (page,) = pool.allocate(1)
    times = pool.times_taken(page)
    pool.free([page])
    assert pool.times_taken(page) == times
    pool.allocate(2)
    assert pool.times_taken(page) == times + 1


def test_a_shared_page_is_free_once_its_last_owner_leaves():
    pool = PagePool(num_pages=3, page_size=16)
    (page,) = pool.allocate(1)
    pool.share([page])
    assert pool.ref_count(page) == 2
    pool.free([page])
    assert (pool.ref_count(page), pool.num_free) == (1, 1)
    pool.free([page])
    assert (pool.ref_count(page), pool.num_free) == (0, 2)


def test_freeing_twice_and_sharing_a_free_page_are_errors():
    pool = PagePool(num_pages=3, page_size=16)
    pool.free(pool.allocate(1))
    with pytest.raises(RuntimeError, match="page 1 freed twice"):
        pool.free([1])
    with pytest.raises(RuntimeError, match="page 1 is free: it cannot be shared"):
        pool.share([1])


@pytest.mark.parametrize("num_tokens, num_pages", [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_pages_for(num_tokens, num_pages):
    assert PagePool(4, page_size=16).pages_for(num_tokens) == num_pages


def test_a_pool_needs_a_page_beside_the_null_page():
    with pytest.raises(ValueError, match="num_pages=1: must be at least 2"):
        PagePool(1, 16)


def test_whether_any_page_has_two_owners():
    pool = PagePool(5, 16)
    pages = pool.allocate(2)
    assert not pool.any_shared
    pool.share(pages[:1])
    assert pool.any_shared
    pool.free(pages)
    assert not pool.any_shared and pool.num_used == 1
