"""`jbatch tune` on costs that are made up, and what it writes."""

import json

import pytest

from bench.options import Setting
from bench.simulate.command import simulated_by, workload_for
from bench.tune.aim import Aim
from bench.tune.candidate import Candidate, Field
from bench.tune.tune import simulate_once, tune
from jbatch.config import EngineConfig
from jbatch.errors import ConfigError
from jbatch.model_dir.tuned import read_tuned
from jbatch.seam.bucket import Bucket, buckets_of
from jbatch.sim.cost import BucketCost, CostTable, HostCost
from jbatch.sim.load import Load
from tests.helpers.command import run

OPTIONS = {"max_num_seqs": 16, "page_size": 16, "max_num_batched_tokens": 256}
MODEL = dict.fromkeys(("embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim"), 8) | {
    "vocab_size": 264
}
FLAGS = ("--dataset-name", "mixed_length", "--num-prompts", "24", "--length-scale", "0.25")


def write_costs(path, cost_of, model=MODEL, **options):
    options = OPTIONS | options
    config = EngineConfig(**options)
    buckets = {bucket: BucketCost(cost_of(bucket)) for bucket in buckets_of(config, 256)}
    about = {"model": "tiny", "engine": options, "num_pages": 300, "max_model_len": 256, "device": "cpu",
             "model_config": model}  # fmt: skip
    CostTable(buckets, HostCost(), about | options).write(path)
    return path


def flat(bucket):
    return 1e-3


def test_the_more_at_once_the_better_where_steps_cost_the_same(tmp_path, capsys):
    costs = write_costs(tmp_path / "costs.json", flat)
    ended = run(capsys, "tune", "--costs", costs, *FLAGS, "-o", tmp_path / "tuned.json")
    assert (ended.code, ended.err) == (0, "") and "1.00 times as good" in ended.out  # 16 are the default here
    assert "step shapes to compile: 3, and 9 by default" in ended.out
    found = read_tuned(tmp_path / "tuned.json")
    assert found.options["max_num_seqs"] == 16 and found.device == "cpu"
    assert len(found.options["decode_buckets"]) + len(found.options["token_buckets"]) == 3
    assert found.about["workload"]["num_prompts"] == 24
    again = run(capsys, "tune", "--costs", costs, *FLAGS, "-o", tmp_path / "again.json")
    assert again.code == 0 and (tmp_path / "again.json").read_text() == (tmp_path / "tuned.json").read_text()


def engine_of(path, cost_of=flat, **options):
    pages = {"num_pages": options.pop("num_pages")} if "num_pages" in options else {}
    return simulated_by(write_costs(path, cost_of, **options), None, "", pages)


def test_a_pool_for_few_runs_few_where_to_preempt_costs_much(tmp_path):
    """Steps cost their places, and 16 sequences take each other's pages."""

    def by_places(bucket):
        return 1e-4 * bucket.num_places

    engines = [
        engine_of(tmp_path / f"{size}.json", by_places, max_num_seqs=size, num_pages=20) for size in (16, 8)
    ]

    def draw(seed):
        return workload_for(
            "mixed_length", Setting(num_prompts=24, seed=seed), engines[0], {"length_scale": 0.25}
        )

    tuned = tune(Field(engines), draw, 0, Aim("throughput"), None, 60.0)
    assert tuned.default.max_num_seqs == 16 and tuned.found.tried[tuned.default].num_preempted > 0
    assert tuned.best.max_num_seqs == 8
    assert tuned.best_held.output_throughput > tuned.default_held.output_throughput


def test_pages_of_another_size_hold_as_many_tokens(tmp_path):
    field = Field([engine_of(tmp_path / f"{size}.json", page_size=size) for size in (16, 32)])
    small, large = (field.simulated(Candidate(16, 64, size)) for size in (16, 32))
    assert (small.num_pages - 1) * 16 == (large.num_pages - 1) * 32 + 16  # 299 pages are an odd number
    assert field.axes()["page_size"] == [16, 32]


def test_measured_costs_hold_for_the_engine_that_they_were_measured_with(tmp_path, capsys):
    """A step is cheap in an engine of 4 slots, which cannot be told from one of 16."""
    many = write_costs(tmp_path / "many.json", flat)
    few = write_costs(tmp_path / "few.json", lambda bucket: 1e-5, max_num_seqs=4)
    ended = run(capsys, "tune", "--costs", many, "--costs", few, *FLAGS, "-o", tmp_path / "tuned.json")
    assert ended.code == 0 and read_tuned(tmp_path / "tuned.json").options["max_num_seqs"] == 4
    field = Field([simulated_by(path, None, "", {}) for path in (many, few)])
    assert field.default == Candidate(16, 256, 16)
    assert field.axes()["max_num_seqs"] == [4, 16] and field.axes()["max_num_batched_tokens"][-1] == 256
    assert field.simulated(Candidate(4, 64, 16)).costs.step_s(Load(Bucket(4, 64), 4, 0, 0, 0, 0, 0)) == 1e-5
    with pytest.raises(ConfigError, match="max_num_seqs=8: no costs were measured with it and page_size=16"):
        field.simulated(Candidate(8, 64, 16))


def test_no_request_tells_how_long_it_will_be(tmp_path):
    sim = engine_of(tmp_path / "costs.json", max_num_seqs=2)
    workload = workload_for("mixed_length", Setting(num_prompts=24), sim, {"length_scale": 0.25})
    runs = [
        simulate_once(Field([sim]), Candidate(2, 64, 16, policy), workload, None, 0)
        for policy in ("fcfs", "sjf")
    ]
    assert runs[0].duration_s == runs[1].duration_s


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--aim", "speed"), "aim='speed': must be one of throughput, p99-ttft, goodput"),
        (("--aim", "goodput"), "the aim goodput needs limits"),
        (("--throughput-floor", "2"), "throughput_floor=2.0: must be above 0"),
        (("--policy", "best"), "policy='best': must be one of fcfs"),
        (("--time-budget", "0"), "time_budget=0.0: must be a number of seconds above 0"),
        (("--time-budget", "nan"), "time_budget=nan: must be a number of seconds above 0"),
        (("--predictor", "nosuch"), "predictor='nosuch': must be running-mean"),
        (("--costs", "other.json"), "costs='other.json': was measured with another model than the first"),
        (("--costs", "costs.json"), "'costs.json': is a second one of max_num_seqs=16 and page_size=16"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)  # an error cuts a long path
    costs = write_costs("costs.json", flat)
    write_costs("other.json", flat, model=MODEL | {"num_layers": 9})
    ended = run(capsys, "tune", "--costs", costs, *FLAGS, "-o", "tuned.json", *flags)
    assert ended.code == 2 and message in ended.err and not (tmp_path / "tuned.json").exists()


def test_a_file_that_is_no_table_of_costs(tmp_path, capsys):
    (tmp_path / "text").write_text("costs: 1\n")
    (tmp_path / "list").write_text(json.dumps({"kind": "predictor"}))
    for name, message in (("text", "text: is not JSON"), ("list", "list: is no table of costs")):
        ended = run(capsys, "tune", "--costs", tmp_path / name, "-o", tmp_path / "tuned.json")
        assert ended.code == 2 and message in ended.err
