"""The waiting queue by hand. In a scheduler: test_scheduler.py."""

from jbatch.host.request import Sequence
from jbatch.host.waiting import Waiting
from tests.helpers.schedules import request


def waiting_ones(*keys):
    """A queue of sequences with these keys, and the dictionary of those that have not ended."""
    known = {
        idx: Sequence(idx, request([1], 1), token_ids=[1], num_planned=1, key=key)
        for idx, key in enumerate(keys)
    }
    queue = Waiting(known.get)
    for sequence in known.values():
        queue.push(sequence)
    return queue, known


def drain(queue):
    order = []
    while (sequence := queue.first()) is not None:
        order.append(sequence.seq_id)
        queue.pop()
    return order


def test_the_smallest_key_is_first_and_ties_go_by_arrival():
    queue, _ = waiting_ones((2,), (1, 5), (1, 4), (2,))
    assert len(queue) == 4 and drain(queue) == [2, 1, 0, 3]
    assert len(queue) == 0


def test_one_that_ended_leaves_when_it_surfaces():
    queue, known = waiting_ones((0,), (1,), (2,))
    del known[0]
    queue.forget_one()
    assert len(queue) == 2 and len(queue.heap) == 3
    assert queue.first() is known[1] and len(queue) == len(queue.heap) == 2


def test_some_of_them_are_those_that_have_not_ended():
    queue, known = waiting_ones((0,), (1,), (2,))
    del known[0]
    assert [sequence.seq_id for sequence in queue.some(2)] == [1]
    assert list(queue.some(-1)) == []
