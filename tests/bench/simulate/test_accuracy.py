"""The comparison of a simulation with real runs, where one simulation stands for the real machine."""

import pytest

from bench.simulate.accuracy import Case, Comparison, cases, compare, figures_of
from bench.simulate.subject import SimulatedSubject
from tests.bench.simulate.test_simulate import FLAT, simulated


def test_a_simulation_of_itself_has_no_error():
    sim = simulated(num_pages=200, step_s=1e-4)
    every = cases(sim, 24, seed=3)
    assert len(every) == 4 and len({case.name for case in every}) == 4
    for case in every:
        of_pages = sim._replace(num_pages=case.num_pages or sim.num_pages)
        real, ours = (figures_of(SimulatedSubject(of_pages), case.workload) for _ in range(2))
        assert real == ours and (real["preempted"] > 0) == ("few pages" in case.name)
        assert all(each.error == 0 and not each.missed for each in compare(case, [real], ours))


def test_slower_steps_are_seen():
    case = cases(simulated(), 16, seed=0)[0]
    slow = simulated(FLAT._replace(base_s=1.2e-3))
    real, ours = (figures_of(SimulatedSubject(sim), case.workload) for sim in (simulated(), slow))
    assert {each.figure for each in compare(case, [real] * 3, ours) if each.missed} >= {
        "makespan",
        "p50 TPOT",
    }


@pytest.mark.parametrize(
    ("figure", "spread", "simulated_s", "missed"),
    [
        ("makespan", 0.0, 1.04, False),
        ("makespan", 0.0, 0.94, True),
        ("makespan", 0.1, 0.94, False),  # the repeats differ more
        ("p99 TTFT", 0.0, 1.09, False),
        ("p99 TTFT", 0.0, 1.11, True),
    ],
)
def test_what_a_miss_is(figure, spread, simulated_s, missed):
    assert Comparison("x", figure, 1.0, spread, simulated_s).missed == missed


def test_the_spread_is_that_of_the_repeats():
    (made,) = compare(Case("x", None), [{"a": 1.0}, {"a": 2.0}, {"a": 4.0}], {"a": 3.0, "preempted": 1.0})
    assert (made.real, made.spread, made.error) == (2.0, 1.5, 0.5)
