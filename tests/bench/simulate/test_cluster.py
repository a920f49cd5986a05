"""Several simulated engines: each request once, as fast as the speeds allow."""

import pytest

from bench.ladder.arms import ARMS
from bench.simulate.cluster import faster, run_cluster
from bench.simulate.hardware import HARDWARE, derive
from bench.workloads.workload import make_workload
from jbatch.errors import UserFunctionError
from jbatch.host.router import ROUTERS, router_of
from jbatch.model_dir.shapes import model_config
from jbatch.seam.bucket import decode_bucket
from jbatch.sim.load import Load
from tests.bench.simulate.test_simulate import simulated
from tests.helpers.command import run

CONTINUOUS = ARMS["continuous"]


def work(name="mixed_length", num_prompts=48, **options):
    options = {"length_scale": 0.25} | options
    return make_workload(name, num_prompts=num_prompts, seed=0, vocab_size=264, max_model_len=160, **options)


def cluster(router, speeds, workload=None):
    return run_cluster(simulated(), CONTINUOUS, workload or work(), router_of(router), speeds, 0)


@pytest.mark.parametrize("router", ROUTERS)
def test_two_engines_are_faster_than_one(router):
    one, two = cluster(router, [1.0]), cluster(router, [1.0, 1.0])
    assert one.makespan / 2 <= two.makespan < 0.9 * one.makespan
    assert one.imbalance == 1 and two.imbalance >= 1


def test_a_router_that_knows_speeds_uses_them():
    speeds = [1.0, 0.25]
    assert cluster("predicted", speeds).makespan < 0.8 * cluster("round-robin", speeds).makespan


def test_affinity_finds_what_others_computed():
    """Seven beginnings in turn, on three engines."""
    workload = work("prefix", 60, prefix_len=256, input_len=40, output_len=40, num_prefixes=7)
    spread = workload.arriving([0.05 * number for number in range(60)])
    assert (
        cluster("prefix-affinity", [1.0] * 3, spread).hit_rate
        > cluster("round-robin", [1.0] * 3, spread).hit_rate
    )


def test_faster_devices():
    model = model_config("llama3.2-1b", 16, 1024)
    load = Load(decode_bucket(8), 8, 4000, 500, 0, 0, 0)
    for costs in (simulated().costs, derive(HARDWARE["h200"], model)):
        load = load._replace(bucket=decode_bucket(4))
        assert faster(costs, 2.0).step_s(load) == pytest.approx(costs.step_s(load) / 2)


FLAGS = ("--hardware", "h200", "--model", "llama3.2-1b", "--max-model-len", "1024", "--num-prompts", "24")


def test_the_command(capsys):
    speeds = ("--replica-speed", "1", "--replica-speed", "0.5")
    ended = run(capsys, "simulate", *FLAGS, "--replicas", "3", *speeds, "--router", "predicted")
    assert (ended.code, ended.err) == (0, "") and "simulated: 3 engines with policy fcfs" in ended.out
    assert "predicted" in ended.out and "round-robin" not in ended.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--router", "best"), "router='best': must be one of round-robin"),
        (("--replica-speed", "0"), "replica_speed=0.0: must be a number above 0"),
        (("--policy", "sjf", "--policy", "fcfs"), "policy=['sjf', 'fcfs']: several engines have one policy"),
        (("--goodput", "ttft:9"), "goodput={'ttft': 9.0}: is for one engine: leave it or --replicas out"),
        (("--max-concurrency", "4"), "max_concurrency=4: is for one engine: leave it or --replicas out"),
        (("--replicas", "0"), "replicas=0: must be an integer from 1 to 1024"),
        (("--replicas", "1", "--router", "predicted"), "router=['predicted']: is for several engines"),
        (("--replicas", "1", "--replica-speed", "2"), "replica_speed=[2.0]: is for several engines"),
        (("--output-json", "x.json"), "output_json='x.json': is for one engine"),
    ],
)
def test_bad_input_is_named(capsys, flags, message):
    ended = run(capsys, "simulate", *FLAGS, "--replicas", "2", *flags)
    assert ended.code == 2 and message in ended.err


@pytest.mark.parametrize("idx", [2, -1, None, "0"])
def test_a_router_that_names_no_engine_is_named(idx):
    class Mine:
        def route(self, request, loads):
            return idx

    with pytest.raises(UserFunctionError, match="router='Mine': it must give an index from 0 to 1, and gave"):
        run_cluster(simulated(), CONTINUOUS, work(num_prompts=2), Mine(), [1.0, 1.0], 0)
