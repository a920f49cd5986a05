"""What the pictures of arms say."""

import re

import numpy as np
import pytest

from bench.report import figures
from bench.report.plot import UNITS
from tests.helpers import bench_results
from tests.helpers.bench_results import arms


def titles(picture):
    """The bold line above each panel."""
    return [re.search(r'font-weight="600">([^<]*)', panel.elements)[1] for panel in picture.panels]


def test_every_token_is_counted_in_time():
    """In results whose steps say how many tokens they gave, and in older ones."""
    for arm in arms():
        older = arm._replace(steps={k: v for k, v in arm.steps.items() if k != "output_tokens"})
        for times, total in map(figures.cumulative_tokens, (arm, older)):
            assert total[-1] == sum(bench_results.OUTPUT_LENS) and (np.diff(times) >= 0).all()


def test_a_long_line_keeps_its_ends():
    many = np.arange(10_000)
    some = figures._some(many)
    assert (some[0], some[-1]) == (0, 9_999) and len(some) == figures.MAX_POINTS // 2


def test_latencies_of_requests():
    ttft, tpot, e2el = figures.request_latencies(arms()[1])
    assert ttft[0] == pytest.approx(bench_results.SECONDS)  # the first step prefills
    assert len(tpot) == sum(length > 1 for length in bench_results.OUTPUT_LENS)
    assert (e2el >= ttft).all()
    picture = figures.latencies(arms(), "latency.svg")
    assert [title[:4] for title in titles(picture)] == ["TTFT", "TPOT", "E2EL"]
    assert f"static-padded {np.median(figures.request_latencies(arms()[0])[0]):.3g}" in picture.alt


def test_bars_show_the_median_and_every_repeat():
    picture = figures.throughput(arms(), "throughput.svg")
    rate = arms()[0].figures["output_throughput"]
    assert f"static-padded: {rate:,.0f} ({0.9 * rate:,.0f} to {1.1 * rate:,.0f})" in picture.alt
    assert picture.panels[0].elements.count("<circle") == 6


def test_without_a_floor_no_floor_is_drawn():
    known, unknown = arms()
    unknown.steps["floor_s"][:] = [None] * len(unknown.steps["floor_s"])
    assert figures.step_times([known, unknown], "floor.svg") is not None
    assert figures.step_times([unknown], "floor.svg") is None


def test_each_kind_of_step_has_its_panel():
    _, arm = arms()
    picture = figures.step_times([arm], "floor.svg")
    assert titles(picture) == ["decode steps", "prefill steps"]
    assert "decode: continuous 4 x" in picture.alt  # 8 ms over 2
    arm.steps["kind"][1] = "mixed"
    assert titles(figures.step_times([arm], "floor.svg")) == ["decode steps", "mixed steps", "prefill steps"]


def test_pages_stand_beside_a_contiguous_cache():
    picture = figures.pages(arms(), 12, "pages.svg")
    assert titles(picture) == [arm.name for arm in arms()]
    for panel in picture.panels:
        assert "pages: at most 2 of 12; contiguous: 8" in panel.elements
        contiguous, used = re.findall(r'<path d="M\d+ (\d+)', panel.elements)
        assert (int(contiguous), int(used)) == (0, UNITS * 6 // 8), "the highest stands at the top"
