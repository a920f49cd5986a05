"""The process of a part, in this one."""

import time

import pytest

from bench.gpu_suite import ceilings, child
from bench.gpu_suite.task import NotHere, Task


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(part, tiny=True):
        monkeypatch.setattr(ceilings, "run", part)
        rows = []
        task = Task("ceilings", tiny, time.monotonic() + 60, {}, tmp_path, tmp_path, rows.append)
        return child.run(task), rows

    return run


@pytest.mark.parametrize("status, code", [("ok", 0), ("not run", 0), ("failed", 1), ("WRONG", 1)])
def test_the_exit_status_is_that_of_the_rows(run, status, code):
    assert run(lambda task: task.emit({"case": "a", "status": status})) == (
        code, [{"case": "a", "status": status}],
    )  # fmt: skip


def test_a_part_that_cannot_run_here_says_why(run, capsys):
    def part(task):
        raise NotHere("torch is not installed")

    assert run(part) == (child.NOT_RUN, [])
    assert capsys.readouterr().out.splitlines()[-1] == "torch is not installed"


def test_full_sizes_do_not_run_where_jax_finds_no_gpu(run, capsys, monkeypatch):
    about = {"compute_capability": None, "device": "cpu"}
    monkeypatch.setattr("bench.measure.manifest.collect", lambda: about)
    assert run(lambda task: task.emit({"case": "a", "status": "ok"}), tiny=False) == (child.NOT_RUN, [])
    assert "no NVIDIA GPU" in capsys.readouterr().out
