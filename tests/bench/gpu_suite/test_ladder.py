"""The suite's ladder where time is short."""

import json
import sys

from bench.gpu_suite import ladder as suite_ladder


def test_a_scenario_that_time_is_short_for_is_told(tmp_path, monkeypatch, capsys):
    """By a file of which every arm says so, by the last line, and by the exit status."""
    arguments = ("--out", str(tmp_path), "--model", "demo", "--seconds", "-1")
    monkeypatch.setattr(sys, "argv", ["suite_ladder", *arguments])
    assert suite_ladder.main() == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "not run, no time left: mixed_length, uniform_short, bursty_traffic"
    for scenario in suite_ladder.SCENARIOS:
        content = json.loads((tmp_path / f"batching-{scenario}.json").read_text())
        assert {arm["not_run"] for arm in content["arms"].values()} == {"no time left"}
        longest = max(suite_ladder.SLOTS, content["workload"]["num_prompts"])
        assert longest == 256 and content["workload"]["name"] == scenario
