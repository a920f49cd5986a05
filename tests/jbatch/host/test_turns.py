"""Whose turn it is to decode, where not all fit."""

from jbatch.host.request import Sequence
from jbatch.host.turns import Turns
from jbatch.outputs import FinishReason
from tests.helpers.schedules import request


def sequences(*lengths):
    """With so many tokens in the cache."""
    found = []
    for seq_id, length in enumerate(lengths):
        sequence = Sequence(seq_id, request([1] * length, 40), [1] * length, length + 1)
        sequence.num_cached_planned, sequence.decoding = length, True
        found.append(sequence)
    return found


def taken(turns, running, steps, num_steps=1):
    return [[s.seq_id for s in turns.take(running, num_steps)] for _ in range(steps)]


def test_all_where_all_fit():
    """The step's own tokens count, too."""
    assert taken(Turns(33), sequences(10, 10, 10), 2) == [[0, 1, 2]] * 2
    assert taken(Turns(42), sequences(10, 10, 10), 1, num_steps=4) == [[0, 1, 2]]


def test_who_is_left_out_comes_first_in_the_next_step():
    assert taken(Turns(32), sequences(10, 10, 10), 4) == [[0, 1], [0, 2], [0, 1], [0, 2]]
    assert taken(Turns(11), sequences(10, 10, 10), 7) == [[0], [1], [2], [0], [1], [2], [0]]


def test_nobody_overtakes_one_that_does_not_fit():
    """However many small ones there are, the large one has its turn."""
    assert taken(Turns(31), sequences(10, 30, 1, 1), 4) == [[0], [1], [0, 2, 3], [1]]


def test_who_ends_or_has_still_to_be_read_is_not_counted():
    running = sequences(10, 10, 10, 10)
    running[0].finish_reason, running[1].decoding = FinishReason.STOP, False
    running[2].num_planned = running[2].max_len
    assert taken(Turns(11), running, 2) == [[3], [3]]


def test_no_more_than_a_sequence_may_have():
    running = sequences(10)
    running[0].num_cached_planned = running[0].max_len - 1
    assert taken(Turns(running[0].max_len), running, 1, num_steps=8) == [[0]]
