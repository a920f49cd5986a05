"""The suite's command line, and its results while parts run and when they end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu_suite import command, plan, processes
from bench.gpu_suite.command import Suite
from bench.gpu_suite.plan import BY_NAME, PARTS
from bench.gpu_suite.processes import Ended

FOLDER = Path(command.__file__).parent


def main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_suite", *map(str, arguments)])
    return command.main()


@pytest.fixture
def make_suite(tmp_path):
    def make(tiny=False, budget_s=570.0):
        for name in ("out", "work"):
            (tmp_path / name).mkdir(exist_ok=True)
        return Suite(tmp_path / "out", tmp_path / "work", tiny, budget_s)

    return make


def read(suite):
    return json.loads((suite.out / "results.json").read_text())


def test_rows_are_in_the_file_as_soon_as_they_are_told(make_suite, monkeypatch):
    suite, seen = make_suite(), []

    def run(words, limit_s, env, ears):
        ears.about({"jax": "1"})
        for status in ("checked", "ok"):
            ears.row({"case": "a", "status": status})
            seen.append(read(suite)["parts"][-1])
        return Ended("stopped", None, 9.0, ["the last words"])

    monkeypatch.setattr(processes, "run", run)
    suite.run([BY_NAME["ceilings"], BY_NAME["steps-8b"]])
    assert [part["rows"][0]["status"] for part in seen[:2]] == ["checked", "ok"], (
        "a later row takes its place"
    )
    content = read(suite)
    assert [part["status"] for part in content["parts"]] == ["stopped", "stopped"]
    assert content["parts"][0]["tail"] == ["the last words"] and content["manifest"] == {"jax": "1"}
    earlier = json.loads((suite.work / "earlier.json").read_text())
    assert earlier == {"ceilings": [{"case": "a", "status": "ok"}]}


def test_parts_that_do_not_fit_say_so_and_the_others_know_their_limit(make_suite, monkeypatch):
    limits = []

    def run(words, limit_s, env, ears):
        limits.append(limit_s)
        return Ended("ok", 0, 0.1, [])

    monkeypatch.setattr(processes, "run", run)
    suite = make_suite(budget_s=plan.END_S + 50)
    suite.run([BY_NAME["filtered"], BY_NAME["ceilings"]])
    assert [part["status"] for part in read(suite)["parts"]] == ["no time left", "ok"]
    assert limits == [pytest.approx(50, abs=0.5)]


def test_rows_of_an_earlier_call_are_known_but_not_those_of_a_tiny_one(make_suite, tmp_path):
    (tmp_path / "work").mkdir()
    part = {"part": "ceilings", "rows": [{"case": "a", "status": "ok"}]}
    for tiny, known in ((False, {"ceilings": part["rows"]}), (True, {})):
        content = {"tiny": tiny, "parts": [part, {"part": "prefill", "rows": []}]}
        (tmp_path / "work" / "results.json").write_text(json.dumps(content))
        assert make_suite().earlier == known


def test_a_folder_with_results_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(monkeypatch, "--tiny", "--out", tmp_path)
    assert "not empty" in capsys.readouterr().err and (tmp_path / "results.json").read_text() == "{}"


def test_without_a_gpu_nothing_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "has_gpu", lambda: False)
    with pytest.raises(SystemExit):
        main(monkeypatch, "--out", tmp_path / "out")
    assert "--tiny" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [("--warm", "nosuch.tar.gz", "no such file"), ("--budget", "0", "must be more than 20")],
)
def test_a_rehearsal_refuses_what_the_call_would(option, value, says, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        main(monkeypatch, "--rehearse", option, value)
    assert ended.value.code == 2 and f"{option} {value}: {says}" in capsys.readouterr().err


def test_a_rehearsal_prints_the_timetable(monkeypatch, capsys):
    assert main(monkeypatch, "--rehearse", "--budget", "570") == 0
    assert capsys.readouterr().out.rstrip() == plan.table(plan.pack(PARTS, 570))


def test_results_go_to_a_folder_of_their_own(tmp_path):
    assert command.next_folder(tmp_path, "gpu-suite").name == "gpu-suite"
    (tmp_path / "gpu-suite").mkdir()
    assert command.next_folder(tmp_path, "gpu-suite").name == "gpu-suite-2"


def test_one_part_from_the_command_line_and_then_warm(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert main(monkeypatch, "--tiny", "--out", out, "--part", "ceilings") == 0
    (part,) = json.loads((out / "results.json").read_text())["parts"]
    (row,) = part["rows"]
    assert part["status"] == "ok" and row["status"] == "ok" and row["read_bytes_per_s"] > 0
    assert {file.name for file in out.iterdir()} <= {
        "results.json", "suite.log", "warm.tar.gz", "report.html",
    }  # fmt: skip
    monkeypatch.setattr(Suite, "run", lambda self, parts: self.write())
    main(monkeypatch, "--tiny", "--out", tmp_path / "second", "--warm", out / "warm.tar.gz")
    assert "warm start" in capsys.readouterr().out


def test_every_part_is_there_and_needs_no_pydantic():
    """A machine with a GPU may lack it. In a fresh process, with what parts import when they run."""
    modules = {f"bench.gpu_suite.{part.module}" for part in BY_NAME.values()}
    modules |= {f"bench.gpu_suite.{file.stem}" for file in FOLDER.glob("*.py") if file.stem != "__main__"}
    modules |= {"bench.compare.steps", "bench.compare.command", "bench.compare.measurement", "jbatch.llm"}
    blocked = "import sys; sys.modules['pydantic'] = sys.modules['pydantic_core'] = None"
    code = f"{blocked}; import importlib; [importlib.import_module(name) for name in {sorted(modules)}]"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.long
def test_the_whole_tiny_suite_without_pydantic(tmp_path, monkeypatch):
    for name in ("pydantic", "pydantic_core"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    assert main(monkeypatch, "--tiny", "--out", out) == 0
    result = json.loads((out / "results.json").read_text())
    assert [part["part"] for part in result["parts"]] == [part.name for part in PARTS]
    for part in result["parts"]:
        assert (part["status"] == "ok" and part["rows"]) or (part["status"] == "not run" and part["tail"]), (
            part
        )
    files = list(out.iterdir())
    assert len(files) <= 8 and sum(file.suffix in (".png", ".svg") for file in files) <= 2
    page = (out / "report.html").read_text()
    assert "not a measurement" in page and all(part.name in page for part in PARTS)
