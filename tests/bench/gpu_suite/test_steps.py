"""The suite's steps: compiled together with XLA's options, a row for each, whatever happens to another."""

import time

import pytest

from bench.gpu_suite import steps
from bench.gpu_suite.task import Task
from bench.steps import step_model


def row(flags, ms, number=64, status="ok"):
    return {"flags": flags, "ms": ms, "number": number, "status": status}


@pytest.fixture
def rows():
    return []


@pytest.fixture
def make_task(tmp_path, rows):
    def make(part, earlier=None, seconds=600):
        deadline = time.monotonic() + seconds
        return Task(part, True, deadline, earlier or {}, tmp_path, tmp_path, rows.append)

    return make


def test_filtered_sampling_without_and_with_loops_in_graphs(make_task, rows):
    steps.run(make_task("filtered"))
    assert [row["flags"] for row in rows] == [steps.ENGINE, "loops in graphs"]
    assert all(row["status"] == "ok" and row["ms"] > 0 and row["sampler"] == "filtered" for row in rows)
    assert len({row["case"] for row in rows}) == 2 and "share_of_floor" not in rows[0]


def test_a_step_that_is_not_compiled_in_time_is_a_row(make_task, rows):
    steps.run(make_task("filtered", seconds=0))
    assert all(row["status"] == "failed" and "not compiled within" in row["reason"] for row in rows)


def test_the_sweep_goes_on_with_the_two_best(make_task, rows, monkeypatch):
    cublas, sums = "no split-K, cuBLAS", "no split-K, sums in products"
    speed = {"XLA's own": 4.0, steps.ENGINE: 5.0, "no split-K": 2.0, cublas: 1.0, sums: 3.0}

    def wave(self, number, variants):
        made = [row(variant.flags, speed[variant.flags], variant.case.number) for variant in variants]
        rows.extend(made)
        return made

    monkeypatch.setattr(steps.Bench, "wave", wave)
    steps.run(make_task("flag-sweep"))
    swept = [(row["number"], row["flags"]) for row in rows]
    assert swept[:4] == [(4, flags) for flags in steps.SWEPT]
    assert swept[4:] == [(1, cublas), (1, "no split-K")]
    rows.clear()
    earlier = {"flag-sweep": [row(cublas, 1.0), row("XLA's own", 2.0)]}
    steps.run(make_task("steps-8b", earlier))
    assert [(row["number"], row["flags"]) for row in rows] == [
        (4, steps.ENGINE), (1, steps.ENGINE), (4, cublas),
    ]  # fmt: skip
    rows.clear()
    steps.run(make_task("steps-8b", {"flag-sweep": [row("XLA's own", 1.0)]}))
    assert len(rows) == 2, "on this device, they are the engine's own"


def test_the_best_options_are_those_of_the_first_size(make_task):
    swept = [
        row("XLA's own", 2.0),
        row("no split-K, cuBLAS", 1.0, status="WRONG"),
        row("no split-K", 0.1, number=1),
    ]
    assert steps.best_flags(make_task("steps-8b", {"flag-sweep": swept})) == "XLA's own"
    assert steps.best_flags(make_task("steps-8b")) == steps.ENGINE


def test_a_model_that_is_too_large_is_a_row(make_task, rows, monkeypatch):
    monkeypatch.setattr(step_model, "why_too_large", lambda *args: "needs 200 GB")
    steps.run(make_task("prefill"))
    assert [row["reason"] for row in rows] == ["needs 200 GB"] * 2


def test_options_stand_in_for_the_engines_or_beside_them(monkeypatch):
    monkeypatch.setattr(steps, "options_for", lambda device, bucket: steps.WHOLE_PRODUCTS)
    variant = steps.Variant(steps.Case("decode", 64, 1024))
    assert variant.options(None) == steps.WHOLE_PRODUCTS
    assert variant._replace(flags="XLA's own").options(None) == {}
    looped = variant._replace(flags="loops in graphs").options(None)
    commands = looped.pop("xla_gpu_enable_command_buffer").split(",")
    assert looped == steps.WHOLE_PRODUCTS and {"FUSION", "CUBLAS", "CONDITIONAL", "WHILE"} < set(commands)
