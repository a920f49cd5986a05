"""What a tuned engine gains: the draw, and the pairs."""

from types import SimpleNamespace

import pytest

from bench.measure.models import DEMO
from bench.options import Setting
from bench.simulate.calm import Calm
from bench.simulate.command import simulated_by, workload_for
from bench.simulate.subject import SimulatedSubject
from bench.tune import gain
from bench.tune.aim import Figures
from jbatch.model_dir.tuned import read_tuned
from tests.bench.tune.test_tune import FLAGS, write_costs
from tests.helpers.command import run


class Model(SimulatedSubject):
    """In the place of a real engine: steps cost their places."""

    def __init__(self, model, max_model_len, options, measure_floor):
        slots = 16 if "tuned" not in options else read_tuned(options["tuned"]).options["max_num_seqs"]
        costs = write_costs(f"{slots}.json", lambda bucket: 1e-4 * bucket.num_places, max_num_seqs=slots)
        super().__init__(simulated_by(costs, None, "", {"num_pages": 20}))
        self.policy = "fcfs"

    def close(self):
        pass


def test_both_run_the_draw_that_was_held_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gain, "LLMSubject", Model)
    monkeypatch.setattr(gain, "calm_of", lambda subject: Calm(lambda: 1.0))
    costs = [write_costs(f"c{slots}.json", lambda bucket: 1e-3, max_num_seqs=slots) for slots in (16, 8)]
    flags = (*(f"--costs={path}" for path in costs), *FLAGS, "--request-rate", "50", "--seed", "3")
    assert run(capsys, "tune", *flags, "-o", "tuned.json").code == 0
    config = SimpleNamespace(vocab_size=264, max_context_len=256)
    draw = gain.held_out(read_tuned("tuned.json"), config)
    options = {"length_scale": 0.25, "request_rate": 50.0}
    setting = Setting(num_prompts=24, seed=4)
    assert (
        draw.hash == workload_for("mixed_length", setting, simulated_by(costs[0], None, "", {}), options).hash
    )
    gains = gain.run_gain("tuned.json", DEMO, repeats=2)
    assert [len(each.ratios) for each in gains] == [2] * 4
    shown = [line.split() for line in str_of(gain.gain_table(gains), capsys).splitlines()]
    assert ["tokens/s", "measured"] in [line[:2] for line in shown]


def str_of(table, capsys):
    gain.Page().show(table)
    return capsys.readouterr().out


def test_ratios_are_those_of_pairs():
    def figures(value):
        return Figures(value, 1.0, 1.0, 1.0, 1.0, 0)

    predicted = {"default": figures(10)._asdict(), "tuned": figures(12)._asdict()}
    runs = {"default": [figures(v) for v in (20, 30, 10)], "tuned": [figures(v) for v in (30, 30, 20)]}
    first, *_ = gain.compare(predicted, runs)
    assert first[:1] + first[2:] == ("output_throughput", (20, 30), (1.5, 1.0, 2.0))
    assert first.predicted_ratio == pytest.approx(1.2)
