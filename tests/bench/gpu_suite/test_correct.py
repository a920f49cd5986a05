"""The suite's check of kernels: what is right, wrong or late is a row for each case."""

import time

import pytest

from bench.gpu_suite import correct
from bench.gpu_suite.task import Task
from pallas_kernels import proof


def run(part="correct-triton", seconds=600):
    rows = []
    correct.run(Task(part, True, time.monotonic() + seconds, {}, None, None, rows.append))
    return rows


@pytest.fixture
def write_only(monkeypatch):
    monkeypatch.setattr(correct, "TINY_CASES", correct.TINY_CASES[1:])


def test_kernels_that_are_right():
    rows = run()
    assert [(row["op"], row["status"]) for row in rows] == [("decode", "ok"), ("write_kv", "ok")]


def test_a_kernel_that_answers_wrong(monkeypatch):
    def wrong(run, trial):
        raise proof.WrongAnswer("3 of 8 elements are wrong")

    monkeypatch.setattr(proof, "check", wrong)
    decode, write = run()
    assert decode["status"] == "WRONG" and "3 of 8" in decode["reason"] and write["status"] == "ok"


def test_a_write_that_leaves_another_cache(monkeypatch, write_only):
    monkeypatch.setattr(correct.cache_ops, "compile_check", lambda case, call: lambda: False)
    (row,) = run()
    assert row["status"] == "WRONG"


def test_a_kernel_that_the_device_refuses(monkeypatch, write_only):
    def refuse(case, call):
        raise RuntimeError("ptxas: no")

    monkeypatch.setattr(correct.cache_ops, "compile_check", refuse)
    (row,) = run()
    assert row["status"] == "failed" and row["reason"] == "RuntimeError: ptxas: no"


def test_each_op_has_its_cases_with_every_kind_of_heads():
    assert len({correct._name(case) for case in correct.CASES}) == len(correct.CASES) == 12
