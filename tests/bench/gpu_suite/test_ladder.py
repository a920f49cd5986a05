"""The suite's ladder: a row for each arm after each of its passes, and none begun that would be late."""

import json
import time

import pytest

from bench.gpu_suite import ladder
from bench.gpu_suite.task import Task
from jbatch.host.limits import fill
from tests.helpers.fake_subject import CountingRunner, FakeSubject

ARMS = ["continuous", "static", "static-padded"]


class Subject(FakeSubject):
    """A ladder's subject that needs no model."""

    about: dict = {}  # noqa: RUF012

    def close(self):
        pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(seconds=600, make=Subject):
        rows = []
        monkeypatch.setattr(ladder, "LLMSubject", lambda *args, **options: make(max_num_seqs=4))
        task = Task("ladder-7b", True, time.monotonic() + seconds, {}, tmp_path, tmp_path, rows.append)
        ladder.run(task)
        return rows, json.loads((tmp_path / "batching-mixed_length.json").read_text())

    return run


def test_a_row_for_each_arm(run):
    rows, content = run()
    assert [row["arm"] for row in rows] == ARMS == list(content["arms"])
    for row in rows:
        assert row["status"] == "ok" and row["output_throughput"] > 0 and 0 < row["slot_use"] <= 1
        assert row["p50_e2el_ms"] > 0 and len(row["repeats"]) == 1
    assert "continuous / static" in content["gains"]


def test_an_arm_that_fails_takes_nobody_along(run):
    class Breaks(CountingRunner):
        def submit(self, step):
            raise RuntimeError("the device\nis gone")

    class Failing(Subject):
        def new_engine(self, arm, max_num_seqs):
            self.runner = Breaks if arm.name == "static" else CountingRunner
            return super().new_engine(arm, max_num_seqs)

    rows, content = run(make=Failing)
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["reason"] == content["arms"]["static"]["not_run"] == "RuntimeError: the device is gone"


def test_no_pass_begins_when_time_is_over(run):
    rows, content = run(seconds=-1)
    assert rows == [] and {arm["not_run"] for arm in content["arms"].values()} == {"its turn did not come"}


def test_what_waits_fills_steps_with_prompts():
    """With sizes of 64 and 512, 400 tokens that wait would go up 64 at a time."""
    sizes = ladder.OPTIONS["token_buckets"]
    assert [min(n, fill(n, sizes, sizes[-1])) for n in (16, 100, 400)] == [16, 100, 128]
