"""The suite's check of kernels: what is right, wrong or late is a row for each case."""

import time

from bench.gpu_suite import correct
from bench.gpu_suite.task import Task
from pallas_kernels import proof


def run(part="correct-triton", seconds=600):
    rows = []
    correct.run(Task(part, True, time.monotonic() + seconds, {}, None, None, rows.append))
    return rows


def test_kernels_that_are_right():
    rows = run()
    assert [(row["op"], row["status"]) for row in rows] == [("decode", "ok"), ("rotate", "ok")]


def test_a_kernel_that_answers_wrong(monkeypatch):
    def wrong(run, trial):
        raise proof.WrongAnswer("3 of 8 elements are wrong")

    monkeypatch.setattr(proof, "check", wrong)
    for row in run():
        assert row["status"] == "WRONG" and "3 of 8" in row["reason"]


def test_a_kernel_that_the_device_refuses(monkeypatch):
    def refuse(name, trial, *, interpret):
        raise RuntimeError("ptxas: no")

    monkeypatch.setattr(proof, "compile_trial", refuse)
    for row in run():
        assert row["status"] == "failed" and row["reason"] == "RuntimeError: ptxas: no"


def test_each_op_has_its_cases_with_every_kind_of_heads():
    assert len({correct._name(case) for case in correct.CASES}) == len(correct.CASES) == 12
