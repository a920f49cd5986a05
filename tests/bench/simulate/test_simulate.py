"""Simulations against the runner that counts, and the commands as a user meets them."""

import dataclasses
import json

import pytest

from bench.ladder.arms import ARMS
from bench.ladder.ladder import climb
from bench.measure.drive import drive
from bench.measure.measures import latencies
from bench.options import Setting
from bench.simulate.command import measured_by
from bench.simulate.subject import Simulated, SimulatedSubject
from bench.workloads.workload import WorkItem, Workload, make_workload
from jbatch.config import EngineConfig
from jbatch.host.config import scheduler_config
from jbatch.host.policies import POLICIES
from jbatch.seam.bucket import buckets_of
from jbatch.sim.cost import SECONDS, BucketCost, CostError, CostTable, HostCost
from tests.helpers.command import run, write_model
from tests.helpers.fake_subject import FakeSubject

CONFIG = EngineConfig(max_num_seqs=4, page_size=16, batch_wait_timeout_s=0.02)
MAX_MODEL_LEN = 160
FLAT = BucketCost(1e-3)


def simulated(cost=FLAT, num_pages=1024, **host):
    buckets = set()
    for mode in ("continuous", "static"):
        buckets |= set(buckets_of(EngineConfig(max_num_seqs=4, page_size=16, mode=mode), MAX_MODEL_LEN))
    costs = CostTable(dict.fromkeys(buckets, cost), HostCost(**host))
    return Simulated(CONFIG, MAX_MODEL_LEN, num_pages, 264, costs, {})


@pytest.mark.parametrize("num_pages", [1024, 16])
def test_counts_are_those_of_a_runner_that_draws_tokens(num_pages):
    workload = make_workload(
        "mixed_length", num_prompts=24, seed=0, vocab_size=264, max_model_len=160, length_scale=0.25
    )
    arms = list(ARMS.values())
    fake = climb(FakeSubject(4, num_pages=num_pages), arms, workload, Setting(repeats=1))
    ours = climb(SimulatedSubject(simulated(num_pages=num_pages)), arms, workload, Setting(repeats=1))
    assert (num_pages == 16) == (ours["continuous"].counts.num_preempted > 0)
    for name, arm in ours.items():
        assert arm.counts == fake[name].counts, name


def test_latencies_by_a_pencil():
    """A prompt step and two decode steps of 1 ms each, the host's 0.25 ms in front of the first."""
    item = WorkItem(tuple(range(3, 11)), 3, 0.0)
    engine = SimulatedSubject(simulated(step_s=2.5e-4)).new_engine(ARMS["continuous"], 4)
    found = latencies(drive(engine, Workload("one", (item,), 0, {})))
    assert found.ttft.mean == pytest.approx(1.25) and found.e2el.mean == pytest.approx(3.25)
    assert found.tpot.mean == pytest.approx(1.0)


def test_requests_end_by_themselves_before_their_budget():
    items = tuple(WorkItem((5, 6, 7, number), 2 + number, 0.0) for number in range(8))
    subject = SimulatedSubject(simulated(), {number: item.output_len for number, item in enumerate(items)})
    run = drive(subject.new_engine(ARMS["continuous"], 4), Workload("some", items, 0, {}), budget=100)
    assert [len(token_ids) for token_ids in run.token_ids] == [item.output_len for item in items]
    engine = subject.new_engine(ARMS["continuous"], 4)
    with pytest.raises(Exception, match="request 0 ended with 2 of 3 tokens"):
        drive(engine, Workload("other", (items[0]._replace(output_len=3),), 0, {}), budget=100)


def test_sizes_without_costs_are_refused():
    sim = simulated()._replace(config=EngineConfig(max_num_seqs=5, page_size=16))
    with pytest.raises(CostError, match="no costs of steps of 5 slots and 0 tokens"):
        SimulatedSubject(sim)


def test_calibrate_and_simulate(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.simulate.calm.SLOW", float("inf"))  # tests run beside others
    model, costs, out = write_model(tmp_path / "tiny"), tmp_path / "costs.json", tmp_path / "out.json"
    sizes = ("--device", "cpu", "--max-num-seqs", "2", "--page-size", "16", "--max-num-batched-tokens", "64")
    ended = run(
        capsys, "bench", "calibrate", "--model", model, *sizes, "--max-model-len", "64", "--repeats", "1",
        "-o", costs,
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "") and "what a step costs" in ended.out
    buckets = json.loads(costs.read_text())["buckets"]
    assert all(any(entry[name] > 0 for name in SECONDS) for entry in buckets)  # which one, chance decides
    flags = ("--dataset-name", "mixed_length", "--length-scale", "0.1", "--num-prompts", "20")
    ended = run(
        capsys, "simulate", "--costs", costs, *flags, "--policy", "fcfs", "--policy", "sjf",
        "--output-json", out,
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "") and "costs measured on" in ended.out
    content = json.loads(out.read_text())
    assert content["kind"] == "simulated" and content["arms"].keys() == {"fcfs", "sjf"}
    fcfs, sjf = content["arms"].values()
    assert sjf["mean_e2el_ms"] < fcfs["mean_e2el_ms"]
    again = run(capsys, "simulate", "--costs", costs, *flags)
    assert next(line for line in again.out.splitlines() if "fcfs" in line) in ended.out  # by its seed


def test_derived_costs_say_so(capsys):
    flags = ("--model", "llama3.2-1b", "--num-prompts", "16", "--max-model-len", "1024")
    ended = run(capsys, "simulate", "--hardware", "a100", *flags)
    assert (ended.code, ended.err) == (0, "")
    assert "llama3.2-1b on NVIDIA A100 80GB, derived from its data sheet and not measured" in ended.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "costs=None: give either --costs FILE or --hardware NAME"),
        (("--hardware", "h200", "--costs", "x"), "costs='x': give either"),
        (("--hardware", "b200"), "hardware='b200': must be one of h200, a100"),
        (("--hardware", "h200", "--model", "demo"), "model='demo': must be one of llama2-7b"),
        (("--hardware", "h200", "--policy", "best"), "policy='best': must be one of fcfs"),
        (
            ("--hardware", "h200", "--dataset-name", "uniform_short", "--input-len", "10"),
            "input_len=10: is of random and prefix only, not of uniform_short",
        ),
        (("--costs", "nosuch.json"), "nosuch.json: cannot be read"),
        (("--hardware", "h200", "--num-pages", "3"), "num_pages=3: must be at least 10: the longest request"),
        (("--hardware", "h200", "--num-pages", "3", "--replicas", "2"), "num_pages=3: must be at least 10"),
        (("--hardware", "h200", "--model", "llama3-70b"), "model='llama3-70b': does not fit into 90% of the"),
    ],
)
def test_bad_input_is_named(capsys, flags, message):
    ended = run(capsys, "simulate", *flags)
    assert ended.code == 2 and message in ended.err


def test_a_simulated_scheduler_is_told_what_an_engine_s_is():
    config = EngineConfig(
        max_num_seqs=4, page_size=16, enable_prefix_caching=False, admission="forecast",
        max_preemption_probability=0.3, batch_wait_timeout_s=7.0,
    )  # fmt: skip
    subject = SimulatedSubject(simulated()._replace(config=config))
    told = subject.new_engine(ARMS["static-full"], 4).scheduler.config
    assert told == scheduler_config(
        dataclasses.replace(config, mode="static-full"),
        subject.simulated.shape,
        MAX_MODEL_LEN,
        told.buckets,
        POLICIES["fcfs"],
    )
    assert not told.enable_prefix_caching and told.batch_wait_timeout_s == 7.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": 5}, "the costs do not say what they were measured with"),
        ({"num_pages": None}, "measured with num_pages=None: must be an integer above 0"),
        ({"model_config": {"vocab_size": "x"}}, "measured with vocab_size='x': must be"),
    ],
)
def test_costs_that_do_not_say_what_they_are_of_are_refused(change, message):
    about = {"engine": {}, "max_num_seqs": 4, "num_pages": 9, "max_model_len": 64}
    table = CostTable({}, HostCost(), about | {"model_config": {"vocab_size": 264}} | change)
    with pytest.raises(CostError, match=message):
        measured_by(table, {})
