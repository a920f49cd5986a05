"""`jbatch demo`: on a random model for its parts, and on the real one for what it shows."""

import json

import pytest

from jbatch.cli import demo
from tests.helpers.command import DEMO, run, write_model

WEIGHTS = DEMO / "model.safetensors"


@pytest.fixture
def few(monkeypatch):
    """The demo with fewer prompts and slots, and each mode once."""
    monkeypatch.setattr(demo, "NUM_PROMPTS", 3)
    monkeypatch.setattr(demo, "NUM_SLOTS", 2)
    monkeypatch.setattr(demo, "REPEATS", 1)
    monkeypatch.setattr(demo, "TOKEN_BUCKETS", (256,))
    monkeypatch.setattr(demo, "NUM_SHOWN", 2)


def test_on_any_model(few, tmp_path, monkeypatch, capsys):
    """A random model, whose texts are of any bytes and right by chance at most."""
    monkeypatch.setattr(demo, "MODEL_DIR", write_model(tmp_path / "model"))
    (tmp_path / "figures.json").touch(0o600)
    ended = run(capsys, "demo", "--json", tmp_path / "figures.json", "--device", "cpu")
    assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "figures.json").stat().st_mode & 0o777 == 0o600
    assert "Answers that differ between the arms: 0. Compilations after warm-up: 0." in ended.out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["schema"] == 1 and 0 <= figures["right_share"] < 0.5
    assert figures["modes"].keys() == demo.MODE_TEXTS.keys()


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the demo's weights are not here")
def test_on_its_own_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "REPEATS", 1)
    ended = run(capsys, "demo", "--json", tmp_path / "figures.json", "--device", "cpu")
    assert (ended.code, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 120
    assert all(f"\n  {mode} " in ended.out for mode in demo.MODE_TEXTS)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["schema"] == 1 and figures["right_share"] >= 0.95
    check_figures(figures["modes"])


def check_figures(modes):
    """What the comparison is there to show."""
    assert all(figures["compilations_after_warmup"] == 0 for figures in modes.values())
    assert len({figures["output_tokens"] for figures in modes.values()}) == 1
    for field in ("num_steps", "decode_steps"):
        steps = {mode: figures[field] for mode, figures in modes.items()}
        assert steps["unbatched"] > steps["static"] == steps["static-padded"] > steps["continuous"]
    slots = {mode: figures["slot_steps"] for mode, figures in modes.items()}
    # A step with prompts has slots for all that run, and those whose prompts it reads are idle.
    assert slots["static-padded"] > slots["continuous"] > slots["static"] >= slots["unbatched"]
    assert slots["static-padded"] == demo.NUM_SLOTS * steps["static-padded"]
    assert slots["unbatched"] == steps["unbatched"]


def test_timelines_share_a_scale(capsys):
    console = demo.Page(width=80)
    steps = 80 - demo.PLOT_MARGIN
    demo._print_timeline(console, "static", ["AB··"] * 2 * steps, 2 * steps)
    demo._print_timeline(console, "continuous", ["ABCD"] * 10, 2 * steps)
    out = capsys.readouterr().out
    assert f"  slot 0 {'A' * steps}\n" in out and "  slot 0 AAAAA\n" in out
    assert out.count("(one column in 2 steps)") == 2
    assert max(map(len, out.splitlines())) <= 80
