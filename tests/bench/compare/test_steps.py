import pytest

from bench.compare.steps import line, measure
from bench.steps.command import TINY, Case
from bench.steps.step_model import Rates, Rows

pytest.importorskip("torch")


def test_both_arms_compute_the_same_step(capsys):
    rows = Rows(None, {})
    measure(TINY, [Case("decode", 2, TINY.context)], Rates(1e9, 1e9), 1, rows.add)
    assert [row["arm"] for row in rows.rows] == ["jbatch", "torch"]
    assert all(row["tokens_that_differ"] == 0 and row["ms"] > 0 for row in rows.rows)
    assert rows.rows[1]["times_as_fast_as_torch"] == 1
    assert capsys.readouterr().out.splitlines() == [line(row) for row in rows.rows]
