"""Axes: round ticks, few enough for a narrow screen."""

import pytest

from bench.report import plot
from bench.report.plot import Plot


@pytest.mark.parametrize(
    "high, ticks", [(712, (0, 200, 400, 600)), (1, (0, 0.25, 0.5, 0.75, 1)), (0, (0, 0.25, 0.5, 0.75, 1))]
)
def test_ticks_are_round(high, ticks):
    assert plot.linear("", high).ticks == pytest.approx(ticks)


@pytest.mark.parametrize("low, high", [(0.5, 8), (0.001, 1000), (3, 3), (0, 5), (1e-6, 1e6)])
def test_a_logarithmic_axis_has_a_few_ticks_between_its_ends(low, high):
    axis = plot.logarithmic("", low, high)
    assert 1 <= len(axis.ticks) <= 7 and axis.low < axis.high
    assert all(axis.low <= tick <= axis.high * 1.001 for tick in axis.ticks)


def test_values_stand_between_the_ends():
    axes = Plot(plot.linear("", 10), plot.logarithmic("", 1, 100))
    assert axes.line([0, 5, 10], [1, 10, 100], "red").startswith('<path d="M0 1000L500 500L1000 0"')
    assert axes.stairs([0, 5, 10], [1, 10, 100], "red").startswith('<path d="M0 1000H500V500H1000V0H1000"')


def test_nothing_at_all_stands_at_the_end_of_a_logarithmic_axis():
    assert plot.logarithmic("", 0, 5).place([0.0, 5.0]).tolist() == [0.0, 1.0]


def test_dots_on_one_place_are_one_and_what_is_not_finite_is_none():
    axes = Plot(plot.linear("", 10), plot.linear("", 10))
    drawn = axes.points([1, 1, float("nan"), 2], [1, 1, 1, float("inf")], "red", 5, 1)
    assert drawn.count("h0") == 1
