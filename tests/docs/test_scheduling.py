"""docs/scheduling.md: its commands run, on a table of costs that is made up."""

import re
import shlex
from pathlib import Path

import pytest

from bench.simulate.fit import ENOUGH
from jbatch.config import EngineConfig
from jbatch.seam.bucket import buckets_of
from jbatch.sim.cost import BucketCost, CostTable, HostCost
from tests.helpers.command import run

TEXT = (Path(__file__).parents[2] / "docs/scheduling.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^    (jbatch .*)$", TEXT, re.MULTILINE)]
SIMULATIONS = [command for command in COMMANDS if command[0] in ("simulate", "tune") or "policies" in command]
OPTIONS = {"max_num_seqs": 16, "page_size": 16, "max_model_len": 1024}
SIZES = dict.fromkeys(("embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim"), 8)


def made_up_costs(path, **changed):
    options = OPTIONS | changed
    buckets = dict.fromkeys(buckets_of(EngineConfig(**options), 1024), BucketCost(1e-3))
    about = {
        "model": "demo",
        "engine": options,
        "num_pages": 999,
        "model_config": SIZES | {"vocab_size": 264},
    }
    CostTable(buckets, HostCost(), about | options).write(path)


@pytest.mark.parametrize("command", SIMULATIONS, ids=" ".join)
def test_simulations_run(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, slots in (("costs.json", 16), ("costs32.json", 32), ("costs64.json", 64)):
        made_up_costs(name, max_num_seqs=slots)
    num_prompts = "5" if command[0] == "tune" else "20"
    ended = run(capsys, *command, "--num-prompts", num_prompts)
    assert (ended.code, ended.err) == (0, "") and "simulated: " in ended.out


def test_calibrate_takes_its_flags(capsys):
    shown = run(capsys, "bench", "calibrate", "--help").out
    commands = [command for command in COMMANDS if command[:2] == ["bench", "calibrate"]]
    flags = [flag for command in commands for flag in command if flag.startswith("-")]
    assert len(commands) == 3 and all(flag in shown for flag in flags)


def test_how_many_steps_are_enough():
    assert f"fewer than {ENOUGH} times" in TEXT
