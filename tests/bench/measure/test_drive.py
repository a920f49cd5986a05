"""A pass on a made-up clock, of one millisecond per look."""

import itertools

import pytest

from bench.ladder.arms import ARMS
from bench.measure.drive import drive
from bench.workloads.workload import WorkItem, Workload
from tests.helpers.fake_subject import FakeSubject


def ticking():
    ticks = itertools.count()
    return lambda: next(ticks) / 1000


def workload(*arrivals, output_len=4):
    items = (WorkItem((3 + number,) * 8, output_len, at) for number, at in enumerate(arrivals))
    return Workload("made up", tuple(items), 0, {})


def run(work, arm="continuous", **options):
    subject = FakeSubject(max_num_seqs=4)
    return drive(subject.new_engine(ARMS[arm], 4), work, clock=ticking(), **options)


def test_every_token_has_its_time():
    measured = run(workload(0.0, 0.0, output_len=5))
    assert [len(times) for times in measured.token_times] == [5, 5]
    for times in measured.token_times:
        assert times == sorted(times) and len(set(times)) == 5, "a step gives one token"
    assert measured.duration_s == measured.events[-1].t and measured.idle_s == 0
    assert max(map(max, measured.token_times)) <= measured.duration_s
    assert measured.summary.output_tokens == 10


def test_idle_time_is_skipped_and_counted():
    measured = run(workload(0.0, 1000.0, 1000.0, 5000.0))
    assert measured.arrivals == [0.0, 1000.0, 1000.0, 5000.0]
    firsts = [times[0] for times in measured.token_times]
    assert all(at < first < at + 0.1 for at, first in zip(measured.arrivals, firsts, strict=True))
    assert 4999 < measured.idle_s < 5000 < measured.duration_s < 5000.1


def test_a_request_that_comes_while_others_run_waits_for_its_time():
    measured = run(workload(0.0, 0.009, output_len=30))
    first, last = measured.token_times[0][0], measured.token_times[0][-1]
    assert 0.009 < measured.token_times[1][0] < last and first < 0.009
    assert measured.idle_s == 0


def test_at_most_so_many_are_in_the_engine():
    measured = run(workload(*[0.0] * 6), max_concurrency=2)
    spans = [(sent, times[-1]) for sent, times in zip(measured.arrivals, measured.token_times, strict=True)]
    for sent, _ in spans:
        assert sum(begin <= sent < end for begin, end in spans) <= 2
    assert measured.arrivals[0] < 0.01 < measured.arrivals[2], "latencies count from when a request was sent"


def test_latencies_count_from_when_a_request_was_sent():
    """For the engine, too: by its arrival a batch of static-full tells how long it has waited."""
    engine = FakeSubject(max_num_seqs=4).new_engine(ARMS["continuous"], 4)
    arrivals, add = [], engine.add_request
    engine.add_request = lambda *args, arrival, **options: arrivals.append(arrival) or add(*args, **options)
    begin = ticking()
    measured = drive(engine, workload(*[0.0] * 6), max_concurrency=2, clock=begin)
    assert arrivals == pytest.approx(measured.arrivals) and arrivals[-1] > 0.01


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_lengths_are_forced(temperature):
    measured = run(workload(0.0, output_len=7), temperature=temperature)
    assert len(measured.token_times[0]) == 7
