"""How the suite runs its stages: in processes of their own, each within its limit."""

import json
import sys
import time

import pytest

from bench import gpu_suite
from bench.gpu_suite import STAGES, Stage, run_stage


def stage(code: str, limit_s: float = 60, **fields) -> Stage:
    return Stage("test", ("-c", code), limit_s, (), **fields)


def run(stage: Stage, folder, smoke: bool = True, budget: float = 60):
    return run_stage(stage, folder, smoke, time.monotonic() + budget)


@pytest.mark.parametrize(
    "code, status, exit_code",
    [
        ("print('said')", "ok", 0),
        ("import sys; print('said'); sys.exit(1)", "failed", 1),
        ("import sys; print('said'); sys.exit(3)", "crashed", 3),
        ("import os; print('said', flush=True); os.abort()", "crashed", -6),
    ],
)
def test_how_a_stage_ends(tmp_path, code, status, exit_code):
    row = run(stage(code), tmp_path)
    assert (row["status"], row["exit_code"], row["tries"]) == (status, exit_code, 1)
    assert (tmp_path / row["log"]).read_text() == "said\n" and "reason" not in row


def test_a_stage_is_stopped_with_its_children(tmp_path):
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(alive)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    row = run(stage(code, limit_s=1), tmp_path)
    assert row["status"] == "timed out" and row["exit_code"] is None
    time.sleep(4)
    assert not alive.exists()


def test_silence_is_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "QUIET_S", 3.0)
    assert run(stage("import time; time.sleep(60)"), tmp_path)["status"] == "timed out"
    talks = "import time\nfor _ in range(8): print('.', flush=True); time.sleep(0.5)"
    assert run(stage(talks), tmp_path)["status"] == "ok"


def test_on_after_a_crash(tmp_path):
    code = "import os, sys; print(sys.argv[1:], flush=True); '--resume' in sys.argv or os.abort()"
    row = run(stage(code, resume=True), tmp_path)
    assert row["status"] == "ok" and row["tries"] == 2
    assert (tmp_path / row["log"]).read_text() == "[]\n['--resume']\n"
    assert run(stage("import os; os.abort()", resume=True), tmp_path)["tries"] == gpu_suite.TRIES


def test_what_is_not_run(tmp_path):
    assert run(stage("", tool=("no-such-checker",)), tmp_path)["status"] == "absent"
    assert run(stage("")._replace(smoke=None), tmp_path)["status"] == "absent"
    row = run(stage(""), tmp_path, smoke=False, budget=1)
    assert row["status"] == "skipped" and row["reason"] == "no time left"


def test_commands(tmp_path):
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    for found in STAGES:
        for smoke in (False, True):
            command = gpu_suite.full_command(found, tmp_path, smoke)
            assert not any(part.startswith("OUT") for part in command)
            assert command[len(found.tool)] == sys.executable


def test_smoke_suite(tmp_path, monkeypatch, capsys):
    arguments = ["--smoke", "--only", "ceilings", "sanitizer-memcheck", "--output-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu_suite", *arguments])
    assert gpu_suite.main() == 0
    result = json.loads((tmp_path / "suite.json").read_text())
    assert [(row["stage"], row["status"]) for row in result["stages"]] == [
        ("ceilings", "ok"),
        ("sanitizer-memcheck", "absent"),
    ]
    assert result["smoke"] and result["manifest"]["jax"]
    assert "ceilings" not in json.loads((tmp_path / "ceilings.json").read_text())
    assert "not a measurement" in capsys.readouterr().out
