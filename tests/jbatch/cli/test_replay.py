"""`jbatch replay`: what it prints, and what it refuses."""

import json

import pytest

from jbatch.cli import main as cli
from jbatch.sampling_params import SamplingParams
from tests.helpers.tiny_engine import drain
from tests.jbatch.sim.test_trace_replay import make_engine


@pytest.fixture
def path(tmp_path):
    engine = make_engine(num_rows=2)
    with engine.trace_to(tmp_path / "trace"):
        for number, length in enumerate((30, 30, 2, 2, 2, 2)):
            engine.add_request(str(number), [number], SamplingParams(max_tokens=length, ignore_eos=True))
        drain(engine)
    return tmp_path / "trace"


def replay(*args):
    return cli._run(["replay", *map(str, args)])


def test_all_plans_are_equal(path, capsys):
    assert replay(path) == 0
    assert "plans, all equal to the trace's" in capsys.readouterr().out


def test_policies_are_compared(path, capsys):
    assert replay(path, "--policy", "sjf", "--policy", "fcfs") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[2:5]] == ["fcfs*", "sjf", "fcfs"]
    assert lines[2][2:] == lines[4][2:], "the same policy, on the same clock of steps"
    assert float(lines[3][4]) < float(lines[2][4])


def test_admissions_are_compared(path, capsys):
    """Two rows and pages for all: they admit alike; and each with each policy."""
    assert replay(path, "--admission", "no-evict", "--admission", "forecast", "--policy", "sjf") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:2] == ["policy", "admission"] and lines[2][:2] == ["fcfs*", "optimistic*"]
    assert [line[:2] for line in lines[3:5]] == [["sjf", "no-evict"], ["sjf", "forecast"]]
    assert replay(path, "--admission", "no-evict") == 0
    assert capsys.readouterr().out.splitlines()[3].split()[:2] == ["fcfs", "no-evict"]


def test_it_is_written_for_perfetto(path, tmp_path, capsys):
    assert replay(path, "--chrome", tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["traceEvents"]


def test_nothing_is_overwritten(path, tmp_path, capsys):
    (tmp_path / "out.json").write_text("mine")
    assert replay(path, "--chrome", tmp_path / "out.json") == cli.REFUSED
    assert (tmp_path / "out.json").read_text() == "mine"
    said = capsys.readouterr().err
    assert "chrome=" in said and "out.json': is there already: name another, or remove it" in said


def test_what_cannot_be_repeated_is_refused(path, tmp_path, capsys):
    assert replay(path, "--admission", "all") == cli.REFUSED
    assert replay(path, "--admission", "no-evict", "--chrome", tmp_path / "x") == cli.REFUSED
    said = capsys.readouterr().err.splitlines()
    assert (
        "admission='all': must be one of optimistic, forecast, no-evict" in said[0] and "chrome=" in said[1]
    )
    assert replay(path, "--policy", "none") == cli.REFUSED
    assert replay("gone") == cli.REFUSED
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4] + lines[5:]))
    assert replay(path) == cli.REFUSED
    said = capsys.readouterr().err.splitlines()
    assert (
        "policy='none'" in said[0]
        and "trace='gone': cannot be read: No such file" in said[1]
        and "line 5" in said[2]
        and len(said) == 3
    )


def test_a_plan_that_differs_is_shown(path, capsys):
    path.write_text(path.read_text().replace('"preempted":[]', '"preempted":[99]', 1))
    assert replay(path) == cli.REFUSED
    said = capsys.readouterr()
    assert (
        said.out.startswith("trace: {") and "now:   {" in said.out and "line 10: plan 1 differs" in said.err
    )
