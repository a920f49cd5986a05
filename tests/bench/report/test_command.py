"""The report is read by people; what can be checked is that all is there, and that the rest is drawn."""

import json
import re

import pytest

from bench.report import command as report
from jbatch.cli.main import main as jbatch
from jbatch.errors import ConfigError
from tests.helpers import bench_results
from tests.helpers.bench_results import bars_only


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "batching-mixed.json").write_text(json.dumps(bench_results.content()))
    return tmp_path


def test_the_page_and_its_pictures(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        jbatch(["bench", "report", str(folder)])
    assert not ended.value.code and "report.html" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    pictures = ("throughput", "slots", "latency", "parts", "tokens", "pages", "floor", "sweep")
    assert {file.name for file in folder.glob("*.svg")} == {f"batching-mixed-{name}.svg" for name in pictures}
    assert page.count('role="img"') == len(pictures)
    assert not re.search(
        r"<script|<link|src=\"(?!data:)|https?://|url\(", page
    )  # nothing comes from elsewhere
    heading = re.search(r"<h2[^>]*>(batching[^<]*)", page)[1]
    assert "CPU, demo model: counts are meaningful, times are mostly overhead" in heading
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    report.write(folder)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}, "the same bytes again"
    for text in ("what static-padded is", "no torch here", "c0ffee", "1.50 x", "2.9 x", "length scale 0.25"):
        assert text in page, text


def test_what_cannot_be_read_is_a_row_and_the_rest_is_drawn(folder):
    (folder / "batching-mixed.json").write_text(json.dumps(bars_only()))
    (folder / "half.json").write_text('{"schema": 1, "kin')
    (folder / "list.json").write_text("[]")
    (folder / "new.json").write_text('{"schema": 1, "kind": "sideways"}')
    (folder / "hollow.json").write_text('{"schema": 1, "kind": "batching", "manifest": {}}')
    short = bench_results.content()
    short["arms"]["continuous"]["steps"][2].pop()
    (folder / "short.json").write_text(json.dumps(short))
    page = report.write(folder).read_text()
    rows = dict(re.findall(r'<tr><th scope="row">(\w+\.json)</th><td[^>]*>(.*?)</td>', page))
    assert rows.keys() == {"half.json", "list.json", "new.json", "hollow.json", "short.json"}
    assert "no JSON" in rows["half.json"] and "schema" in rows["list.json"]
    assert "sideways" in rows["new.json"] and "malformed" in rows["hollow.json"]
    assert "fields" in rows["short.json"]
    assert page.count('role="img"') == 1


def test_no_results_are_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="folder"):
            report.write(folder)


def test_files_that_are_no_results_are_no_report(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("[")
    with pytest.raises(SystemExit) as ended:
        jbatch(["bench", "report", str(tmp_path)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and str(tmp_path) in said
    assert (
        "(*.json that `jbatch bench ... --output-json` wrote): a.json is no result: it has no schema 1"
        in said
    )
    assert "(and 1 more)" in said and not (tmp_path / "report.html").exists()


def test_a_limit_on_pictures_counts_those_of_others(folder):
    (folder / "kernels-decode.png").write_bytes(b"")
    report.write(folder, max_pictures=3)
    names = {file.name for file in folder.iterdir() if file.suffix in (".png", ".svg")}
    assert names == {"kernels-decode.png", "batching-mixed-throughput.svg", "batching-mixed-slots.svg"}
