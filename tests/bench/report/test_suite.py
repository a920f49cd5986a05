"""The GPU suite on a page."""

import json

from bench.report import command as report


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
    assert [file.name for file in tmp_path.glob("*.svg")] == ["shares.svg"] and page.count('role="img"') == 1
