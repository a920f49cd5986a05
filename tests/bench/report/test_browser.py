"""A report in a real browser: nothing is wider than the screen, the console is silent, a dark page is dark.

Its screenshots are in build/report, to be looked at.
"""

import json
import shutil
from pathlib import Path

import pytest

from bench.report import command as report
from tests.helpers import bench_results
from tests.helpers.browser import DRIVER, Browser

pytestmark = [pytest.mark.long, pytest.mark.skipif(DRIVER is None, reason="no chromedriver")]
ROOT = Path(__file__).parents[3]
SHOTS = ROOT / "build" / "report"
EXAMPLE = ROOT / "bench" / "results" / "example-cpu-demo" / "batching-mixed_length.json"

# What is wider than the window, or than the box that would let it scroll.
WIDE = """
const width = document.documentElement.clientWidth, wide = [];
for (const box of document.querySelectorAll('body *')) {
  if (box.closest('svg') && box.tagName !== 'text') continue;
  const {left, right} = box.getBoundingClientRect();
  if (right > width + 1 || left < -1) wide.push(box.tagName + ' ' + (box.textContent || '').slice(0, 40));
  if (box.scrollWidth > box.clientWidth + 1 && box.className === 'scroll')
    wide.push('scrolls: ' + box.textContent.slice(0, 40));
}
return {page: document.documentElement.scrollWidth - width, wide};
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """All that a report may hold: the example, another scenario with a sweep, and the GPU suite."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copy(EXAMPLE, folder)
    other = bench_results.content(gains={"continuous / unbatched": 3.5, "static / unbatched": 1.5})
    other["workload"] |= {"name": "bursty_traffic"}
    (folder / "batching-bursty.json").write_text(json.dumps(other))
    names = ("us", "us_best", "us_worst", "floor_us", "share", "bytes_per_s", "flop_per_s", "error", "batch")
    row = {"case": "decode gqa page 16, 64 x 1024, mosaic", "status": "ok"} | dict.fromkeys(names, 0.831234)
    row |= {f"{name}_again": 123456.7 for name in names}
    part = {"part": "decode-kernel", "begin_s": 1.0, "seconds": 60.0, "status": "ok", "rows": [row] * 3}
    suite = {"schema": 1, "kind": "gpu-suite", "tiny": True, "manifest": {}, "parts": [part]}
    (folder / "results.json").write_text(json.dumps(suite))
    return report.write(folder)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_fits_and_is_silent(browser, page, width, dark):
    browser.show(page, width, dark)
    SHOTS.mkdir(parents=True, exist_ok=True)
    browser.screenshot(SHOTS / f"report-{width}-{'dark' if dark else 'light'}.png")
    browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.run(WIDE) == {"page": 0, "wide": []}
    assert browser.errors() == []
    text, paper = browser.run(
        "return [getComputedStyle(document.querySelector('svg text')).fill,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    brightness = [sum(map(int, colour.strip("rgb()").split(","))) > 384 for colour in (text, paper)]
    assert brightness == ([True, False] if dark else [False, True])


def test_what_is_too_wide_or_amiss_is_noticed(browser, tmp_path):
    table = "<table><tr>" + "<td>0123456789</td>" * 40 + "</tr></table>"
    page = tmp_path / "wide.html"
    page.write_text(f'<!DOCTYPE html><div class="scroll" style="overflow-x: auto">{table}</div>'
                    "<script>nothing()</script>")  # fmt: skip
    browser.show(page, 400)
    assert any("scrolls" in found for found in browser.run(WIDE)["wide"])
    assert "nothing is not defined" in browser.errors()[0]
    page.write_text(f"<!DOCTYPE html>{table}")
    browser.show(page, 400)
    assert browser.run(WIDE)["page"] > 0
