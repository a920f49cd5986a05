"""The policy lab: what each policy is for, on costs that are made up and on a machine that is too small."""

import json

import pytest

from bench.results import RequestRow
from bench.simulate.policies import Outcome, _rates, run_lab, wishes_of
from bench.simulate.subject import Simulated
from bench.workloads.workload import make_workload
from jbatch.config import EngineConfig
from jbatch.errors import ConfigError
from jbatch.host.policies import POLICIES
from jbatch.seam.bucket import buckets_of
from jbatch.sim.cost import BucketCost, CostTable, HostCost
from tests.helpers.command import run

ALONE = ("optimistic",)
CONFIG = EngineConfig(max_num_seqs=4, page_size=16)


def simulated(num_pages=1024):
    buckets = buckets_of(CONFIG, 256)
    costs = CostTable(dict.fromkeys(buckets, BucketCost(1e-3)), HostCost())
    return Simulated(CONFIG, 256, num_pages, 264, costs, {})


def work(name="mixed_length", num_prompts=64, **options):
    options = {"length_scale": 0.25} | options
    return make_workload(name, num_prompts=num_prompts, seed=0, vocab_size=264, max_model_len=256, **options)


@pytest.fixture(scope="module")
def outcomes():
    """Bursts of 32 on 4 slots, and pages for little more than two of the longest."""
    workload = work("bursty_traffic", burst_size=32)
    made = run_lab(
        simulated(num_pages=24), workload, list(POLICIES), ["none", "oracle", "noisy"], ALONE, 200, 0
    )
    return {(outcome.policy, outcome.predictor): outcome for outcome in made}


def test_every_policy_ran_where_a_queue_formed(outcomes):
    assert {policy for policy, _ in outcomes} == set(POLICIES)
    assert all(outcome.queued > 0.5 for outcome in outcomes.values())
    assert sum(outcome.num_preempted for outcome in outcomes.values()) > 0


def test_shortest_first_lowers_the_mean_latency(outcomes):
    assert outcomes["sjf", "oracle"].mean_e2el < 0.8 * outcomes["fcfs", "none"].mean_e2el
    assert outcomes["sjf", "oracle"].mean_e2el < outcomes["sjf", "noisy"].mean_e2el


def test_without_a_prediction_lengths_are_all_alike(outcomes):
    assert outcomes["sjf", "none"].mean_e2el == outcomes["fcfs", "none"].mean_e2el
    assert outcomes["sjf", "none"].regret > 0 == outcomes["sjf", "oracle"].regret


def test_longest_first_lowers_the_makespan():
    made = run_lab(simulated(), work(num_prompts=40), ["fcfs", "ljf"], ["oracle"], ALONE, 200, 0)
    assert made[1].makespan < made[0].makespan


def test_deadlines_keep_more_limits_than_order_of_arrival(outcomes):
    assert outcomes["deadline", "none"].met > outcomes["fcfs", "none"].met


def test_fair_shares_by_user(outcomes):
    """One of four users sends half of the requests."""
    assert outcomes["fair", "none"].fairness > outcomes["fcfs", "none"].fairness


def test_rates_by_a_pencil():
    """User a waits from 0 to 2 and from 5 to 6, and gets 2 of its 3 tokens then; b waits from 1 to 3."""
    rows = [RequestRow(0.0, 2.0, 4.0, 1, 2), RequestRow(5.0, 6.0, 6.0, 1, 1), RequestRow(1.0, 3.0, 3.0, 1, 1)]
    assert _rates(rows, [[2.0, 4.0], [6.0], [3.0]], ["a", "a", "b"]) == [pytest.approx(2 / 3), 0.5]


def test_admission_trades_preemptions_for_slots():
    """Where nothing is known of lengths, room is kept for all of them."""
    workload = work("bursty_traffic", burst_size=32)
    admissions = ["optimistic", "forecast", "no-evict"]
    made = run_lab(simulated(num_pages=13), workload, ["fcfs"], ["oracle", "none"], admissions, 170, 0)
    found = {(outcome.admission, outcome.predictor): outcome for outcome in made}
    assert found["no-evict", "none"].num_preempted == found["forecast", "none"].num_preempted == 0
    assert found["optimistic", "none"].num_preempted > found["forecast", "oracle"].num_preempted
    assert found["optimistic", "none"].makespan < found["forecast", "oracle"].makespan
    assert found["forecast", "oracle"].makespan < found["no-evict", "none"].makespan


def test_wishes_come_from_their_seed():
    workload = work()
    assert wishes_of(workload, 1e-3, 0) == wishes_of(workload, 1e-3, 0) != wishes_of(workload, 1e-3, 1)


def test_an_unknown_policy_is_named():
    with pytest.raises(ConfigError, match="policy='best': must be one of fcfs, sjf"):
        run_lab(simulated(), work(), ["best"], ["none"], ALONE, 200, 0)


FLAGS = ("--hardware", "h200", "--model", "llama3.2-1b", "--max-model-len", "1024", "--policy", "sjf")


def test_the_command(tmp_path, capsys):
    flags = (*FLAGS, "--num-prompts", "40", "--max-num-seqs", "4", "--policy", "fcfs")
    ended = run(
        capsys, "bench", "policies", *flags, "--output-json", tmp_path / "lab.json",
        "--output-png", tmp_path / "lab",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "") and "No queue formed" not in ended.out
    content = json.loads((tmp_path / "lab.json").read_text())
    assert [(row["policy"], row["predictor"]) for row in content["outcomes"]] == [
        *(("sjf", name) for name in ("none", "oracle", "noisy", "running-mean")), ("fcfs", "none"),
    ]  # fmt: skip
    assert content["outcomes"][0].keys() == set(Outcome._fields)
    assert (tmp_path / "lab").read_bytes().startswith(b"\x89PNG"), "whatever it is called"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--num-pages 3", "num_pages=3: must be at least "),
        ("--max-model-len 130", "max_model_len=130: must be at least "),
        ("--predictor oracel", "predictor='oracel': must be none, oracle, noisy, running-mean, "),
    ],
)
def test_what_cannot_be_simulated_is_named(option, message, capsys):
    """The longest prompt and the longest answer are two requests', and all have the same budget."""
    words = "bench policies --hardware h200 --model 150m --num-prompts 24 --length-scale 0.25 --policy sjf"
    ended = run(capsys, *words.split(), *option.split())
    assert ended.code == 2 and ended.err.startswith(f"jbatch: {message}")
    assert not ended.out


def test_a_pool_of_its_own_holds_every_request(capsys):
    words = "bench policies --hardware h200 --model 150m --num-prompts 24 --length-scale 0.25 --policy fcfs"
    ended = run(capsys, *words.split(), "--max-num-seqs", "1", "--predictor", "none")
    assert ended.code == 0 and "1 sequence at once" in ended.out


def test_it_says_so_where_no_queue_formed(capsys):
    ended = run(capsys, "bench", "policies", *FLAGS, "--num-prompts", "4", "--predictor", "oracle")
    assert ended.code == 0 and "No queue formed: policies cannot matter here." in ended.out


def test_a_predictor_is_looked_at_where_no_policy_asks_for_it(capsys):
    flags = ("--hardware", "h200", "--max-model-len", "1024", "--num-prompts", "4", "--policy", "fcfs")
    ended = run(capsys, "bench", "policies", *flags, "--predictor", "nosuch")
    assert ended.code == 2 and "predictor='nosuch': must be none, oracle" in ended.err


def test_the_table_fits_a_terminal(capsys, monkeypatch):
    """What is the same in all rows takes no column."""
    monkeypatch.setenv("COLUMNS", "80")
    flags = ("--hardware", "h200", "--max-model-len", "1024", "--num-prompts", "16", "--max-num-seqs", "2")
    ended = run(capsys, "bench", "policies", *flags, "--policy", "sjf", "--policy", "adaptive")
    rows = [line for line in ended.out.splitlines() if line.strip().startswith(("sjf", "adaptive"))]
    assert len(rows) == 8 and max(map(len, rows)) <= 80 and "admission: optimistic" in ended.out


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.simulate.policies_command.find_spec", lambda name: None)
    ended = run(capsys, "bench", "policies", *FLAGS, "--output-png", tmp_path / "lab.png")
    assert ended.code == 2 and "lab.png': needs matplotlib: pip install '.[lab]'" in ended.err
    assert not ended.out and not list(tmp_path.iterdir())
