"""What is measured in a slow spell is measured again."""

import pytest

from bench.simulate.calm import FIRST, PATIENCE_S, TRIES, Calm


def calm(*later, then):
    """On a machine whose probe takes 1.0 at first, and these seconds later."""
    probes = iter([1.0] * FIRST + list(later))
    slept = []
    return Calm(lambda: next(probes, then), slept.append), slept


def test_what_a_calm_machine_gives_is_taken():
    machine, slept = calm(then=1.2)
    assert machine.run(iter("abc").__next__) == "a"
    assert (machine.num_again, machine.num_slow, slept) == (0, 0, [])


def test_what_began_calm_and_ended_slow_is_done_again():
    machine, _ = calm(1.0, 1.5, then=1.0)
    assert machine.run(iter("abc").__next__) == "b"
    assert (machine.num_again, machine.num_slow) == (1, 0)


def test_a_slow_spell_is_waited_for():
    machine, slept = calm(1.6, 1.6, then=1.0)
    assert machine.run(iter("abc").__next__) == "a" and len(slept) == 2


def test_a_machine_that_stays_slow_gives_what_it_can():
    machine, slept = calm(then=2.0)
    assert machine.run(iter("abcdef").__next__) == "abcdef"[TRIES - 1]
    assert (machine.num_again, machine.num_slow) == (TRIES - 1, 1)
    assert sum(slept) == pytest.approx(TRIES * PATIENCE_S)
