"""The comparison of a simulation with real runs, where one simulation stands for the real machine."""

from types import SimpleNamespace
from typing import ClassVar

import pytest

from bench.simulate import accuracy
from bench.simulate.accuracy import Case, Comparison, cases, compare, figures_of
from bench.simulate.calm import Calm
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
        assert all(each.error == 0 and not each.missed for each in compare(case, [real], [ours]))


def test_slower_steps_are_seen():
    case = cases(simulated(), 16, seed=0)[0]
    slow = simulated(FLAT._replace(base_s=1.2e-3))
    real, ours = (figures_of(SimulatedSubject(sim), case.workload) for sim in (simulated(), slow))
    assert {each.figure for each in compare(case, [real] * 3, [ours] * 3) if each.missed} >= {
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
    assert Comparison("x", figure, 1.0, spread, simulated_s, (simulated_s - 1,)).missed == missed


def test_each_repeat_is_compared_with_its_own_simulation():
    """The machine is twice as slow in the second repeat, and the costs from around it say so."""
    real = [{"a": 1.0}, {"a": 2.0}, {"a": 4.0}]
    simulated = [{"a": 1.1, "preempted": 1.0}, {"a": 2.0}, {"a": 5.0}]
    (made,) = compare(Case("x", None), real, simulated)
    assert (made.real, made.spread, made.simulated) == (2.0, 1.5, 2.0)
    assert made.errors == pytest.approx((0.1, 0.0, 0.25)) and made.error == pytest.approx(0.1)


class Model(SimulatedSubject):
    """In the place of the real one: a simulation that notes when it runs."""

    turns: ClassVar[list[str]] = []

    def __init__(self, model, max_model_len, options, measure_floor):
        super().__init__(simulated(num_pages=options.get("num_pages", 200)))
        self.llm = SimpleNamespace(runner=SimpleNamespace(shape=self.simulated.shape))

    def new_engine(self, *args):
        self.turns.append(f"run on {self.simulated.num_pages} pages")
        return super().new_engine(*args)

    def close(self):
        self.turns.append("closed")


def measure(subject, seed, calm):
    Model.turns.append(f"costs {seed} on {subject.simulated.num_pages} pages")


def test_costs_and_runs_take_turns(capsys, monkeypatch):
    monkeypatch.setattr(accuracy, "LLMSubject", Model)
    monkeypatch.setattr(accuracy, "calm_of", lambda subject: Calm(lambda: 1.0))
    monkeypatch.setattr(accuracy, "measure", measure)
    monkeypatch.setattr(accuracy, "table_of", lambda subject, pieces: subject.simulated)
    monkeypatch.setattr(accuracy, "measured_by", lambda table, options: table)
    result = accuracy.run_accuracy(accuracy.Plan("demo", 24, repeats=2, seed=3))
    runs = [*["run on 200 pages"] * 3, "run on 14 pages"]
    costs = [[f"costs {seed} on {pages} pages" for pages in (200, 14)] for seed in (4, 5, 6)]
    between = [*costs[0], *runs, *costs[1], *runs, *costs[2]]
    assert Model.turns == ["costs 3 on 200 pages", *between, "closed", "closed"]
    assert len(result["rows"]) == 40 and all(row["errors"] == (0.0, 0.0) for row in result["rows"])
    assert "0 of 40 figures missed" in capsys.readouterr().out
