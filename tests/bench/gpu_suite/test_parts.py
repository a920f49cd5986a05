"""How the suite runs its parts: in processes of their own, each within its limit."""

import json
import time

import pytest
from bench.gpu_suite.parts import Part, run_part

from bench.gpu_suite import parts


def part(code: str, limit_s: float = 60, **fields) -> Part:
    return Part("test", ("-c", code), limit_s, (), **fields)


def run(part: Part, folder, tiny: bool = True, budget: float = 60):
    return run_part(part, folder, folder / "scratch", tiny, time.monotonic() + budget)


@pytest.mark.parametrize(
    "code, status, exit_code",
    [
        ("print('said')", "ok", 0),
        ("import sys; print('said'); sys.exit(1)", "failed", 1),
        ("import sys; print('said'); sys.exit(3)", "crashed", 3),
        ("import sys; print('said'); sys.exit(4)", "not run", 4),
        ("import os; print('said', flush=True); os.abort()", "crashed", -6),
    ],
)
def test_how_a_part_ends(tmp_path, code, status, exit_code):
    row = run(part(code), tmp_path)
    assert (row["status"], row["exit_code"], row["tries"]) == (status, exit_code, 1)
    assert (tmp_path / row["log"]).read_text() == "said\n"
    assert row.get("reason") == ("said" if status == "not run" else None)
    assert row.get("tail") == (["said"] if status in ("failed", "crashed") else None)


def test_a_part_is_stopped_with_its_children(tmp_path):
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(alive)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    row = run(part(code, limit_s=1), tmp_path)
    assert row["status"] == "timed out" and row["exit_code"] is None
    time.sleep(4)
    assert not alive.exists()


def test_only_a_name_at_the_beginning_stands_for_a_folder(tmp_path):
    given = ("OUT", "OUT/a.json", "TMP", "--OUTPUT=OUT", "a/OUT", "OUTSIDE")
    command = parts.full_command(Part("test", given, 1, ()), tmp_path / "TMP", tmp_path / "x", tiny=False)
    placed = [str(tmp_path / "TMP"), str(tmp_path / "TMP" / "a.json"), str(tmp_path / "x")]
    assert command[1:] == [*placed, *given[3:]]


def test_silence_is_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "QUIET_S", 3.0)
    row = run(part("import time; time.sleep(30)"), tmp_path, tiny=False)
    assert row["status"] == "timed out" and row["seconds"] < 30
    talks = "import time\nfor _ in range(8): print('.', flush=True); time.sleep(0.5)"
    assert run(part(talks), tmp_path, tiny=False)["status"] == "ok"


def test_on_after_a_crash(tmp_path):
    code = "import os, sys; print(sys.argv[1:], flush=True); '--resume' in sys.argv or os.abort()"
    row = run(part(code, resume=True), tmp_path)
    assert row["status"] == "ok" and row["tries"] == 2
    assert (tmp_path / row["log"]).read_text() == "[]\n['--resume']\n"
    assert run(part("import os; os.abort()", resume=True), tmp_path)["tries"] == parts.TRIES


def test_what_is_not_run(tmp_path):
    assert run(part("", tool=("no-such-checker",)), tmp_path)["status"] == "not run"
    assert run(part("")._replace(tiny=None), tmp_path)["status"] == "not run"
    row = run(part(""), tmp_path, tiny=False, budget=1)
    assert row["status"] == "not run" and row["reason"] == "no time left"


def test_the_result_of_a_part_that_was_stopped_counts(tmp_path):
    code = "import sys, time; open(sys.argv[1] + '/r.json', 'w').write('[1]'); time.sleep(60)"
    leaves_a_file = Part("test", ("-c", code, "OUT"), 2, (), result="r.json")
    row = run(leaves_a_file, tmp_path)
    assert row["status"] == "timed out" and row["file"] == "r.json" and row["result"] == [1]


def test_a_half_written_result_is_named_and_nothing_more(tmp_path):
    code = "import sys; open(sys.argv[1] + '/r.json', 'w').write('[1')"
    row = run(Part("test", ("-c", code, "OUT"), 60, (), result="r.json"), tmp_path)
    assert row["file"] == "r.json" and "result" not in row
    json.dumps(row)
