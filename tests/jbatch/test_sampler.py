"""The six variants: which serves what, and which is chosen."""

import pytest

from jbatch.sampler import Sampler


@pytest.mark.parametrize(
    ("sampler", "filters", "reports", "processes"),
    [
        (Sampler.GREEDY, False, False, False),
        (Sampler.PLAIN, False, False, False),
        (Sampler.FILTERED, True, False, False),
        (Sampler.LOGPROBS, True, True, False),
        (Sampler.PROCESSED, True, False, True),
        (Sampler.EXTENDED, True, True, True),
    ],
)
def test_what_a_program_does(sampler, filters, reports, processes):
    assert (sampler.filters, sampler.reports, sampler.processes) == (filters, reports, processes)


def serves(program, asked):
    """From the table above, and by the order of the first three."""
    if asked.reports or asked.processes:
        return (program.reports >= asked.reports) and (program.processes >= asked.processes)
    return program >= asked


@pytest.mark.parametrize("first", Sampler)
@pytest.mark.parametrize("second", Sampler)
def test_the_union_of_two_is_the_least_that_serves_both(first, second):
    union = first.union(second)
    assert isinstance(union, Sampler), "a step of any requests has a program by name"
    assert union is second.union(first) and union is Sampler(first | second)
    both = [program for program in Sampler if serves(program, first) and serves(program, second)]
    assert union is both[0] and all(serves(program, union) for program in both)


@pytest.mark.parametrize("asked", Sampler)
def test_the_least_that_is_compiled_is_chosen(asked):
    """From any of the 64 sets of programs, in whatever order they are named."""
    for number in range(2 ** len(Sampler)):
        compiled = [program for idx, program in enumerate(reversed(Sampler)) if number >> idx & 1]
        able = [program for program in Sampler if program in compiled and serves(program, asked)]
        assert asked.choose(compiled) == (able[0] if able else None)


def test_programs_that_are_chosen():
    greedy, plain, filtered, logprobs, processed, extended = Sampler
    assert plain.choose([greedy, filtered, extended]) == filtered
    assert greedy.choose([extended]) == extended
    assert filtered.choose([filtered]) == filtered
    assert filtered.choose([extended, processed, logprobs]) == logprobs
    assert logprobs.choose([filtered, processed, extended]) == extended
    assert processed.choose([filtered, logprobs]) is None
    assert extended.choose([greedy, plain, logprobs, processed]) is None and greedy.choose([]) is None
    assert plain.choose(iter([filtered, plain])) == plain
