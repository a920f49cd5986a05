"""The report is read by people; what can be checked is that all is there, and that the rest is drawn."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from bench.report import arms as report_arms
from bench.report import command as report
from bench.report import figures as report_figures
from bench.report import latency_parts, slot_timeline, sweep
from jbatch.cli.main import main as jbatch
from jbatch.errors import ConfigError
from tests.helpers import bench_results


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "batching-mixed.json").write_text(json.dumps(bench_results.content()))
    return tmp_path


def bars_only(**changes):
    """Results without steps and requests: one picture, which is quick."""
    content = bench_results.content(sweep={}, sweep_points={}, **changes)
    for name in ("static-padded", "continuous"):
        content["arms"][name] |= {"steps": [], "requests": [], "mean_decode_ms": None}
    return content


def arms(**changes):
    return report_arms.read_arms(bench_results.content(**changes))[0]


def test_the_page_and_its_pictures(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        jbatch(["bench", "report", str(folder)])
    assert not ended.value.code and "report.html" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    pictures = ("throughput", "slots", "latency", "parts", "tokens", "pages", "floor", "sweep")
    assert {file.name for file in folder.glob("*.png")} == {f"batching-mixed-{name}.png" for name in pictures}
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"<script|<link|src=\"(?!data:)|https?://", page)  # nothing comes from elsewhere
    heading = re.search(r"<h2[^>]*>(batching[^<]*)", page)[1]
    assert "CPU, demo model: counts are meaningful, times are mostly overhead" in heading
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    report.write(folder)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}, "the same bytes again"
    for text in ("what static-padded is", "no torch here", "c0ffee", "1.50 x", "2.9 x", "length scale 0.25"):
        assert text in page, text


def test_a_gain_stands_beside_the_definition_of_its_baseline(folder):
    content = bars_only()
    padded, continuous = (content["arms"][name] for name in ("static-padded", "continuous"))
    continuous["repeats"] = [a * b for a, b in zip(padded["repeats"], (1.0, 1.5, 1.25), strict=True)]
    continuous |= {"attention": "sdpa", "execution": "eager"}
    (folder / "batching-mixed.json").write_text(json.dumps(content))
    page = report.write(folder).read_text()
    (row,) = re.findall(r"<tr>.*?continuous / static-padded.*?</tr>", page)
    assert "1.50 x" in row and "static-padded: what static-padded is" in row
    assert "1.00 to 1.50 x (not trusted)" in row and "differed by up to 40%" in page
    assert "LLaMA-7B on a GPU" in page and "attention: sdpa; execution: eager" in page
    refused = bars_only(gains={"refused": "8 requests are fewer than 16 batches"})
    (folder / "batching-mixed.json").write_text(json.dumps(refused))
    page = report.write(folder).read_text()
    assert "No gain is named: 8 requests are fewer than 16 batches." in page and "1.50 x" not in page
    content = bars_only(gains={"jbatch / hf-generate": {"refused": "8 are too few"}})
    (folder / "batching-mixed.json").write_text(json.dumps(content))
    assert "none: 8 are too few" in report.write(folder).read_text()
    assert [file.name for file in folder.glob("*.png")] == ["batching-mixed-throughput.png"]


def test_scenarios_stand_side_by_side(folder):
    ladder = {"static / unbatched": 1.25, "continuous / unbatched": 2.5}
    (folder / "batching-mixed.json").write_text(json.dumps(bars_only(gains=ladder)))
    heading = "Gains over unbatched, of all files"
    assert heading not in report.write(folder).read_text()
    bursty = bars_only(gains={"continuous / unbatched": 3.5})
    bursty["workload"] |= {"name": "bursty_traffic"}
    (folder / "batching-bursty.json").write_text(json.dumps(bursty))
    page = report.write(folder).read_text()
    rows = dict(re.findall(r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', page[page.index(heading) :]))
    assert "1.25 x (1.5 x)" in rows["mixed_length"] and "2.50 x (3.2 x)" in rows["mixed_length"]
    assert "3.50 x (4.1 x)" in rows["bursty_traffic"] and "1.25" not in rows["bursty_traffic"]


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
    assert page.count("<img") == 1


def test_the_gpu_suite_has_its_parts_and_all_their_rows(tmp_path):
    kernel = {"case": "decode gqa 64 x 1024 mosaic", "status": "ok", "us": 75.0, "share": 0.83}
    step = {"case": "llama3-8b decode 64 x 1024", "status": "ok", "ms": 7.0, "share_of_floor": 0.78}
    late = {"case": "llama3-8b decode 1 x 1024", "status": "failed", "reason": "not compiled within 30 s"}
    content = {
        "schema": 1,
        "kind": "gpu-suite",
        "tiny": True,
        "manifest": {"device": "NVIDIA H200"},
        "parts": [
            {"part": "decode-kernel", "begin_s": 1.0, "seconds": 60.0, "status": "ok", "rows": [kernel]},
            {
                "part": "steps-8b",
                "begin_s": 61.0,
                "status": "stopped",
                "rows": [step, late],
                "tail": ["killed"],
            },
            {"part": "row-bits", "begin_s": 90.0, "status": "no time left", "rows": []},
        ],
    }
    (tmp_path / "results.json").write_text(json.dumps(content))
    page = report.write(tmp_path).read_text()
    for text in ("not a measurement", "83.0%", "78.0%", "not compiled within 30 s", "no time left", "killed"):
        assert text in page, text
    assert [file.name for file in tmp_path.glob("*.png")] == ["shares.png"] and page.count("<img") == 1


def test_no_results_are_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="folder"):
            report.write(folder)


def test_a_limit_on_pictures_counts_those_of_others(folder):
    (folder / "kernels-decode.png").write_bytes(b"")
    report.write(folder, max_pictures=3)
    names = {file.name for file in folder.glob("*.png")}
    assert names == {"kernels-decode.png", "batching-mixed-throughput.png", "batching-mixed-slots.png"}


def test_the_slot_timeline_tells_all_states_apart():
    padded, continuous = (slot_timeline.image(arm) for arm in arms())
    colour = slot_timeline.to_rgb
    first, second = (np.array(colour(name)) for name in slot_timeline.COLOURS[:2])
    shade = slot_timeline.PREFILL_SHADE
    assert np.allclose(padded[:, 0], [shade * first, shade * second])  # both prefill
    assert np.allclose(padded[:, 1], [first, colour(slot_timeline.HELD)])  # request 1 has ended
    mixed = arms()[1]
    mixed.steps["kind"][1], mixed.steps["rows"][1] = "mixed", [[0, 0, 0], [1, 1, 2]]
    assert np.allclose(slot_timeline.image(mixed)[:, 1], [first, shade * second])
    assert np.allclose(continuous[0, 1], colour(slot_timeline.IDLE))  # another one prefills
    assert np.allclose(continuous[0, -1], colour(slot_timeline.PADDING))  # one sequence in a bucket of two


def test_every_token_is_counted_in_time():
    """In results whose steps say how many tokens they gave, and in older ones."""
    for arm in arms():
        older = arm._replace(steps={k: v for k, v in arm.steps.items() if k != "output_tokens"})
        for times, total in map(report_figures.cumulative_tokens, (arm, older)):
            assert total[-1] == sum(bench_results.OUTPUT_LENS) and (np.diff(times) >= 0).all()


def test_latencies_of_requests():
    ttft, tpot, e2el = report_figures.request_latencies(arms()[1])
    assert ttft[0] == pytest.approx(bench_results.SECONDS)  # the first step prefills
    assert len(tpot) == sum(length > 1 for length in bench_results.OUTPUT_LENS)
    assert (e2el >= ttft).all()


def test_without_a_floor_no_floor_is_drawn():
    known, unknown = arms()
    unknown.steps["floor_s"][:] = [None] * len(unknown.steps["floor_s"])
    assert report_figures.step_times([known, unknown]) is not None
    assert report_figures.step_times([unknown]) is None


def test_each_kind_of_step_has_its_panel():
    _, arm = arms()
    titles = [axis.get_title(loc="left") for axis in report_figures.step_times([arm]).axes]
    assert titles == ["decode steps", "prefill steps"]
    arm.steps["kind"][1] = "mixed"
    assert len(report_figures.step_times([arm]).axes) == 3


def test_where_the_latency_goes_is_a_table_and_bars():
    header, first = re.findall(r"<tr>(.*?)</tr>", "".join(latency_parts.table(arms())))[:2]
    assert re.findall(r"(\w+) (mean|p50|p99), ms", header)[:4] == [
        ("fill", "mean"), ("fill", "p50"), ("fill", "p99"), ("queue", "mean"),
    ]  # fmt: skip
    assert "static-padded" in first and first.count("10.5") == 9
    (axis,) = latency_parts.draw(arms()).axes
    assert [round(bar.get_width(), 1) for bar in axis.patches] == [0.0, 10.5, 10.5, 10.5] * 2
    assert [text.get_text() for text in axis.texts] == ["32 ms"] * 2


def test_a_sweep_shows_throughput_latency_and_use():
    axes = sweep.draw(sweep.curves(bench_results.content())).axes
    solid = [axis.lines[0].get_ydata().tolist() for axis in axes]
    assert solid == [[50.0, 90.0], [pytest.approx(0.2), pytest.approx(1 / 9)], [50.0, 50.0]]
    assert [len(axis.lines) for axis in axes] == [2, 3, 3], (
        "with the ring of the best, and p99 and busy dashed"
    )
    older = bench_results.content()
    del older["sweep_points"], older["sweep_fields"]
    assert len(sweep.draw(sweep.curves(older)).axes) == 1


def test_pages_stand_beside_a_contiguous_cache():
    for axis, arm in zip(report_figures.pages(arms(), 12).axes, arms(), strict=True):
        assert axis.get_title(loc="left") == f"{arm.name}: at most 2 of 12; contiguous (line): at most 8"
        assert max(axis.lines[0].get_ydata()) == 8
