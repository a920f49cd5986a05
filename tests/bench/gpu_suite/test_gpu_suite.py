"""The suite's parts and its command line; how a part is run is in test_parts."""

import json
import sys

import pytest
from bench.gpu_suite.parts import full_command

from bench.gpu_suite import command as gpu_suite
from bench.gpu_suite.command import BUDGET_S, PARTS, REPORT_S


def test_commands(tmp_path):
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        for tiny in (False, True):
            command = full_command(part, tmp_path / "out", tmp_path / "scratch", tiny)
            assert not any(argument.startswith(("OUT", "TMP")) for argument in command)
            assert command[len(part.tool)] == sys.executable


def test_the_main_parts_fit_the_budget_at_their_worst():
    names = [part.name for part in PARTS]
    main = PARTS[: names.index(gpu_suite.LAST_MAIN_PART) + 1]
    assert sum(part.limit_s for part in main) <= BUDGET_S - REPORT_S


def main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_suite", *map(str, arguments)])
    return gpu_suite.main()


def test_a_folder_with_results_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(monkeypatch, "--tiny", "--out", tmp_path)
    assert "not empty" in capsys.readouterr().err and (tmp_path / "results.json").read_text() == "{}"


@pytest.mark.long
def test_tiny_suite(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert main(monkeypatch, "--tiny", "--out", out) == 0
    result = json.loads((out / "results.json").read_text())
    assert [row["part"] for row in result["parts"]] == [part.name for part in PARTS if not part.only_named]
    for row in result["parts"]:
        assert row["status"] == "ok" or (row["status"] == "not run" and row["reason"]), row
    assert result["tiny"] and result["manifest"]["jax"]
    files = list(out.iterdir())
    assert all(file.is_file() for file in files)
    assert 1 <= sum(file.suffix == ".png" for file in files) <= 4
    page = (out / "report.html").read_text()
    assert "not a measurement" in page and "<script" not in page
    assert all(part.name in page for part in PARTS if not part.only_named)
