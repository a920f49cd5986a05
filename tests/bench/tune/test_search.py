"""The search on figures that are made up."""

from bench.tune.aim import Aim, Figures
from bench.tune.candidate import Candidate
from bench.tune.search import frontier, search

THROUGHPUT = Aim("throughput")
DEFAULT = Candidate(4, 64, 16)
AXES = {"max_num_seqs": [2, 4, 8, 16], "max_num_batched_tokens": [32, 64, 128], "policy": ["fcfs", "sjf"]}


def made_up(throughput, ttft=lambda candidate: 1.0):
    return lambda c: Figures(throughput(c), ttft(c), 1.0, 1.0, throughput(c) / 2, 0)


def find(evaluate, aim=THROUGHPUT, has_time=lambda: True):
    return search(evaluate, DEFAULT, AXES, aim, has_time)


def test_the_best_of_all_axes_is_found():
    found = find(made_up(lambda c: 100 - abs(c.max_num_seqs - 8) - abs(c.max_num_batched_tokens - 128) / 8))
    assert (found.best.max_num_seqs, found.best.max_num_batched_tokens) == (8, 128) and found.complete


def test_what_gains_less_than_chance_does_not_replace_the_default():
    assert find(made_up(lambda c: 1000 + c.max_num_seqs / 10)).best == DEFAULT


def test_options_that_do_not_go_together_are_passed_over():
    good = made_up(lambda c: 10 * c.max_num_seqs)
    found = find(lambda c: None if c.max_num_seqs == 16 else good(c))
    assert found.best.max_num_seqs == 8 and all(c.max_num_seqs != 16 for c in found.tried)


def test_latency_keeps_the_floor_of_throughput():
    """Fewer sequences wait less and give less: 2 would be best, and costs half of the throughput."""
    evaluate = made_up(
        lambda c: 25 * min(4, c.max_num_seqs), lambda c: float(c.max_num_batched_tokens * c.max_num_seqs)
    )
    found = find(evaluate, Aim("p99-ttft", floor=0.9))
    assert (found.best.max_num_seqs, found.best.max_num_batched_tokens) == (4, 32)
    assert find(evaluate, Aim("p99-ttft", floor=0.5)).best.max_num_seqs == 2


def test_where_time_ends_the_best_so_far_is_given():
    moments = iter([True, True, False])
    found = find(made_up(lambda c: 10 * c.max_num_seqs), has_time=lambda: next(moments))
    assert not found.complete and len(found.tried) == 3


def test_the_same_search_finds_the_same():
    evaluate = made_up(lambda c: hash(c) % 97)
    assert find(evaluate) == find(evaluate)


def test_the_frontier_holds_who_is_beaten_by_nobody():
    figures = {DEFAULT._replace(max_num_seqs=n): Figures(r, t, 0, 0, 0, 0) for n, r, t in
               [(1, 100, 5.0), (2, 90, 4.0), (3, 80, 4.5), (4, 70, 1.0)]}  # fmt: skip
    assert [candidate.max_num_seqs for candidate in frontier(figures)] == [1, 2, 4]
