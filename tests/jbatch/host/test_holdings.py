"""Rows and pages of running sequences, by hand. In a scheduler: test_scheduler.py."""

from jbatch.host.holdings import Holdings
from jbatch.host.plan import TableUpdate
from jbatch.host.request import Sequence
from jbatch.sampler import Sampler
from jbatch.seam.shape import StateShape
from tests.helpers.schedules import request


def sequence_of(num_tokens, **fields):
    asked = request([1] * num_tokens, 4, **fields)
    return Sequence(0, asked, token_ids=[1] * num_tokens, num_planned=num_tokens)


def make_holdings():
    return Holdings(StateShape(num_rows=2, num_pages=6, page_size=4, pages_per_seq=4))


def test_pages_go_behind_those_that_a_sequence_has():
    holdings = make_holdings()
    sequence = sequence_of(9)
    holdings.take_row(sequence)
    assert holdings.num_missing(sequence, 9) == 3
    holdings.take_pages(sequence, 4)
    holdings.take_pages(sequence, 9)
    updates, copies, tables = holdings.take_changes()
    assert holdings.take_changes() == ([], [], {}) and not copies and not tables
    assert updates == [TableUpdate(0, idx, page) for idx, page in enumerate(sequence.pages)]
    assert len(set(sequence.pages)) == 3 and holdings.num_missing(sequence, 12) == 0


def test_who_is_released_holds_nothing():
    holdings = make_holdings()
    first, second = sequence_of(5), sequence_of(5, temperature=1.0)
    holdings.take_row(first)
    holdings.take_row(second)
    holdings.take_pages(first, 5)
    first.num_cached, first.num_cached_planned, first.decoding = 5, 6, True
    assert (first.row, second.row, holdings.sampler) == (0, 1, Sampler.PLAIN)
    holdings.release(second)
    assert holdings.sampler == Sampler.GREEDY
    holdings.release(first)
    assert (first.row, first.pages, first.num_cached, first.num_cached_planned) == (-1, [], 0, 0)
    assert not first.decoding and holdings.pool.num_used == 0
    holdings.take_row(second)
    assert second.row == 0, "the row freed last is taken first"


# Pages that two sequences have.


def two_on_one_prompt():
    """Of 5 tokens in pages of 4: the second page is the one that is written to next."""
    holdings = Holdings(StateShape(num_rows=3, num_pages=9, page_size=4, pages_per_seq=4))
    first, second = sequence_of(5), sequence_of(5)
    for sequence in (first, second):
        holdings.take_row(sequence)
    holdings.take_pages(first, 5)
    first.num_cached_planned = 5
    holdings.share_prompt(first, second, 5)
    _, _, tables = holdings.take_changes()
    assert tables == {1: tuple(first.pages)} and first.pages == second.pages
    return holdings, first, second


def test_who_writes_first_gets_a_copy_and_the_last_one_keeps_the_page():
    holdings, first, second = two_on_one_prompt()
    shared = first.pages[1]
    assert holdings.num_missing(first, 6) == 1
    holdings.take_pages(first, 6)
    assert (first.pages[0], second.pages[1]) == (second.pages[0], shared)
    updates, copies, _ = holdings.take_changes()
    assert copies == [(shared, first.pages[1])] and updates == [TableUpdate(0, 1, first.pages[1])]
    assert holdings.num_missing(second, 6) == 0
    holdings.take_pages(second, 6)
    assert holdings.take_changes() == ([], [], {}) and not holdings.pool.ref_count(shared) > 1


def test_a_copy_of_what_is_copied_by_the_same_step_is_made_from_the_original():
    holdings, first, _ = two_on_one_prompt()
    shared = first.pages[1]
    holdings.take_pages(first, 6)
    third = sequence_of(5)
    holdings.take_row(third)
    holdings.share_prompt(first, third, 5)
    third.num_cached_planned = 4
    holdings.take_pages(third, 5)
    assert holdings.changes.copies == [(shared, first.pages[1]), (shared, third.pages[1])]


def test_a_page_that_is_copied_is_nobody_elses_until_the_step_is_planned():
    holdings, first, second = two_on_one_prompt()
    shared, free = first.pages[1], holdings.pool.num_free
    holdings.take_pages(first, 6)
    holdings.release(second)
    assert holdings.pool.ref_count(shared) == 1 and holdings.pool.num_free == free - 1
    holdings.take_changes()
    assert holdings.pool.ref_count(shared) == 0 and holdings.pool.num_free == free


def test_what_was_to_become_of_a_row_is_dropped_with_it():
    holdings, first, second = two_on_one_prompt()
    holdings.take_pages(second, 9)
    third = sequence_of(5)
    holdings.take_row(third)
    holdings.share_prompt(first, third, 5)
    holdings.release(second)
    holdings.release(third)
    updates, _, tables = holdings.take_changes()
    assert (updates, tables) == ([], {})
