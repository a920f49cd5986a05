"""Structure only: times belong to the machine."""

import json
import sys

from bench import startup
from tests.helpers.command import write_model

CHILD = {"imports": {"s": 1.0, "cpu_s": 0.5}, "first_token": {"s": 2.0, "cpu_s": 1.5}, "programs": 4}


def test_cold_and_warm_starts_of_both_ways(tmp_path, monkeypatch, capsys):
    """The first start of a way finds no cache, the others its own; of these the fastest counts."""
    homes, file = [], tmp_path / "startup.json"

    def measure(way, home, args):
        homes.append((way, home))
        return CHILD | {"first_token": {"s": 9.0 - len(homes), "cpu_s": 1.5}}

    monkeypatch.setattr(startup, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["startup", "--repeats", "2", "--json", str(file)])
    startup.main()
    assert [way for way, _ in homes] == ["api"] * 3 + ["cli"] * 3 and len(set(homes)) == 2
    rows = json.loads(file.read_text())["rows"]
    shown = [(row["way"], row["cache"], row["first_token"]["s"]) for row in rows]
    assert shown == [("api", "cold", 8), ("api", "warm", 6), ("cli", "cold", 5), ("cli", "warm", 3)]
    assert capsys.readouterr().out.count("\n") == 5


def test_a_start_counts_its_programs(tmp_path, capsys):
    """In this process, which is no fresh one."""
    row = startup.start("cli", str(write_model(tmp_path / "model")), ["12+345="], None)
    assert row["programs"] >= 2 and row["first_token"]["cpu_s"] > 0 and row["imports"]["s"] >= 0
    assert "0 compilations after warm-up" in capsys.readouterr().err
