"""A gain is nothing without what it is over."""

import json
import re

from bench.report import command as report
from tests.helpers.bench_results import bars_only


def test_a_gain_stands_beside_the_definition_of_its_baseline(tmp_path):
    content = bars_only()
    padded, continuous = (content["arms"][name] for name in ("static-padded", "continuous"))
    continuous["repeats"] = [a * b for a, b in zip(padded["repeats"], (1.0, 1.5, 1.25), strict=True)]
    continuous |= {"attention": "sdpa", "execution": "eager"}
    (tmp_path / "batching-mixed.json").write_text(json.dumps(content))
    page = report.write(tmp_path).read_text()
    (row,) = re.findall(r"<tr>.*?continuous / static-padded.*?</tr>", page)
    assert "1.50 x" in row and "static-padded: what static-padded is" in row
    assert "1.00 to 1.50 x (not trusted)" in row and "differed by up to 40%" in page
    assert "LLaMA-7B on a GPU" in page and "attention: sdpa; execution: eager" in page
    refused = bars_only(gains={"refused": "8 requests are fewer than 16 batches"})
    (tmp_path / "batching-mixed.json").write_text(json.dumps(refused))
    page = report.write(tmp_path).read_text()
    assert "No gain is named: 8 requests are fewer than 16 batches." in page and "1.50 x" not in page
    content = bars_only(gains={"jbatch / hf-generate": {"refused": "8 are too few"}})
    (tmp_path / "batching-mixed.json").write_text(json.dumps(content))
    assert "none: 8 are too few" in report.write(tmp_path).read_text()
    assert [file.name for file in tmp_path.glob("*.svg")] == ["batching-mixed-throughput.svg"]


def test_scenarios_stand_side_by_side(tmp_path):
    ladder = {"static / unbatched": 1.25, "continuous / unbatched": 2.5}
    (tmp_path / "batching-mixed.json").write_text(json.dumps(bars_only(gains=ladder)))
    heading = "Gains over unbatched, of all files"
    assert heading not in report.write(tmp_path).read_text()
    bursty = bars_only(gains={"continuous / unbatched": 3.5})
    bursty["workload"] |= {"name": "bursty_traffic"}
    (tmp_path / "batching-bursty.json").write_text(json.dumps(bursty))
    page = report.write(tmp_path).read_text()
    rows = dict(re.findall(r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', page[page.index(heading) :]))
    assert "1.25 x (1.5 x)" in rows["mixed_length"] and "2.50 x (3.2 x)" in rows["mixed_length"]
    assert "3.50 x (4.1 x)" in rows["bursty_traffic"] and "1.25" not in rows["bursty_traffic"]
