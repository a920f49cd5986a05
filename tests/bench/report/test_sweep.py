"""A sweep as a picture."""

import re

from bench.report import plot, sweep
from tests.helpers import bench_results


def draw(content):
    return sweep.draw(sweep.curves(content), "sweep.svg")


def test_a_sweep_shows_throughput_latency_and_use():
    content = bench_results.content()
    busy = content["sweep_fields"].index("device_busy_share")
    for point, share in zip(content["sweep_points"]["continuous"], (0.25, 0.75), strict=True):
        point[busy] = share
    picture = draw(content)
    lines = [
        re.findall(r'<path d="(M[^"]*L[^"]*)"[^>]*dasharray="([^"]*)"', p.elements) for p in picture.panels
    ]
    assert [len(found) for found in lines] == [1, 2, 2], "p99 and busy are dashed"
    assert [[dashes != "none" for _, dashes in found] for found in lines] == [
        [False],
        [False, True],
        [False, True],
    ]
    top = plot.linear("", 1.05 * 90).place([50.0, 90.0])
    first, last = ((1 - place) * plot.UNITS for place in top)
    assert lines[0][0][0] == f"M0 {first:.0f}L1000 {last:.0f}"
    assert picture.alt == "Best output tokens/s, and the batch size: continuous 90 at 2."
    older = bench_results.content()
    del older["sweep_points"], older["sweep_fields"]
    assert len(draw(older).panels) == 1


def test_what_is_not_known_is_no_point():
    content = bench_results.content()
    field = content["sweep_fields"].index("p99_e2el_ms")
    for point in content["sweep_points"]["continuous"]:
        point[field] = None
    panel = draw(content).panels[1]
    assert "nan" not in panel.elements.lower() and len(re.findall(r"<path", panel.elements)) == 3
