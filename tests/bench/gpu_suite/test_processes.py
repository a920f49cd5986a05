"""How the suite runs a part: in a process of its own, within its limit, heard while it runs."""

import os
import sys
import time

import pytest

from bench.gpu_suite import processes
from bench.gpu_suite.processes import Ears


class Heard:
    """What a part said, by kind."""

    def __init__(self, folder):
        self.rows, self.about = [], []
        self.ears = Ears(self.rows.append, self.about.append, folder / "suite.log")


@pytest.fixture
def heard(tmp_path):
    return Heard(tmp_path)


def run(code, heard, limit_s=60):
    return processes.run([sys.executable, "-u", "-c", code], limit_s, os.environ, heard.ears)


@pytest.mark.parametrize(
    "code, status, exit_code",
    [
        ("print('said')", "ok", 0),
        ("import sys; print('said'); sys.exit(1)", "failed", 1),
        ("import sys; print('said'); sys.exit(4)", "not run", 4),
        ("import os; print('said'); os.abort()", "crashed", -6),
    ],
)
def test_how_a_part_ends(heard, code, status, exit_code):
    ended = run(code, heard)
    assert (ended.status, ended.exit_code, ended.tail) == (status, exit_code, ["said"])
    assert "said" in heard.ears.log.read_text()


def test_rows_are_heard_and_others_lines_are_kept(heard):
    code = (
        """print('about {"jax": "1"}'); print('row {"case": "a"}'); print('rows'); print('row {"case": "b')"""
    )
    ended = run(code, heard)
    assert heard.rows == [{"case": "a"}] and heard.about == [{"jax": "1"}]
    assert ended.tail == ["rows"], "half a row is none, and the log has it"


def test_a_part_that_is_stopped_keeps_its_rows_and_leaves_no_child(heard, tmp_path):
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(3); open({str(alive)!r}, 'w')"
    code = f"""print('row {{"case": "a"}}'); import subprocess, sys
subprocess.run([sys.executable, '-c', {child!r}])"""
    ended = run(code, heard, limit_s=1.5)
    assert (ended.status, ended.exit_code) == ("stopped", None) and heard.rows == [{"case": "a"}]
    time.sleep(2.5)
    assert not alive.exists()


def test_a_part_is_told_to_end_before_its_limit(tmp_path):
    now = time.monotonic()
    words = processes.command("ceilings", 30, tmp_path / "out", tmp_path / "work", tiny=True)
    deadline = float(words[words.index("--deadline") + 1])
    assert deadline == pytest.approx(now + 30 - processes.GRACE_S, abs=0.5)
    assert words[:4] == [sys.executable, "-m", "bench.gpu_suite.child", "ceilings"] and words[-1] == "--tiny"
