"""Rows and pages of running sequences, by hand. In a scheduler: test_scheduler.py."""

from jbatch.host.holdings import Holdings
from jbatch.host.plan import TableUpdate
from jbatch.host.request import Sequence
from jbatch.sampling_params import Sampler
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
