"""Where the latency goes, in tables and bars."""

import re

from bench.report import latency_parts
from tests.helpers.bench_results import arms


def test_where_the_latency_goes_is_tables_and_bars():
    tables = latency_parts.tables(arms()).split("<table>")[1:]
    assert [re.findall(r'<th scope="col"[^>]*>([^<]*)', table) for table in tables] == [
        [f"{name}, ms", "fill", "queue", "prefill", "decode"] for name in ("mean", "p50", "p99")
    ]
    rows = [re.search(r"<tr>.*static-padded.*</tr>", table)[0] for table in tables]
    assert sum(row.count("10.5") for row in rows) == 9
    picture = latency_parts.draw(arms(), "parts.svg")
    (elements,) = (panel.elements for panel in picture.panels)
    of = 31.5 * 1.01 / 100  # milliseconds of one per cent of the width
    widths = [float(width) for width in re.findall(r'<rect y="[^>]*width="([\d.]+)%"', elements)]
    assert [round(width * of, 1) for width in widths] == [0.0, 10.5, 10.5, 10.5] * 2
    assert re.findall(r">(\d+ ms)<", elements) == ["32 ms"] * 2
    assert "static-padded: 32 ms, of it fill 0, queue 10.5" in picture.alt
