"""Structure only: times belong to the machine."""

import json
import math
import sys

from bench import host


def test_quick_run_writes_every_figure(tmp_path, monkeypatch, capsys):
    file = tmp_path / "host.json"
    monkeypatch.setattr(sys, "argv", ["host", "--quick", "--json", str(file)])
    host.main()
    result = json.loads(file.read_text())
    assert [row["running"] for row in result["host"]["rows"]] == [64, 256, 1024]
    for row in result["host"]["rows"]:
        assert row["total_us"] > 0 and row["schedule_us"] > 0 and row["pack_us"] > 0 and row["apply_us"] > 0
    assert math.isfinite(result["host"]["slope_us_per_sequence"])
    assert (
        result["dispatch"]["leaves_per_call"] == 32 * 6 + 3 + 32 + 2 + 1
    )  # parameters, state, the packed input
    assert result["dispatch"]["submit_us"] > 0
    assert "leaves" in capsys.readouterr().out


def test_churn_keeps_the_number_of_sequences():
    churn = host.Churn(8)
    for _ in range(300):
        churn.step()
        assert len(churn.scheduler.running) + churn.scheduler.num_waiting >= 6
    churn.scheduler.pool.free([])  # what is owned is what running sequences hold
    held = sum(len(sequence.pages) for sequence in churn.scheduler.running)
    assert churn.scheduler.pool.num_used == held
