"""Budgets that keep a time between tokens: told of steps by hand, and in a simulation."""

import dataclasses
import itertools

import pytest

from bench.ladder.arms import ARMS
from bench.measure.drive import drive
from bench.measure.measures import latencies
from bench.simulate.subject import Simulated, SimulatedSubject
from bench.workloads.workload import make_workload
from jbatch import LLM, SamplingParams
from jbatch.config import EngineConfig
from jbatch.host.itl_limits import ENOUGH, HOLD, ItlLimits
from jbatch.host.limits import SchedulerView, StepLimits
from jbatch.host.metrics import StepRecord
from jbatch.seam.bucket import buckets_of
from jbatch.sim.cost import BucketCost, CostTable, HostCost
from tests.helpers.command import write_model

SIZES = (32, 64, 128, 256)
EMPTY = StepRecord(
    *[0] * len([f for f in dataclasses.fields(StepRecord) if f.default is dataclasses.MISSING])
)


def step(tokens, ms, slots_used=4, host_ms=0.0):
    return dataclasses.replace(
        EMPTY,
        tokens=tokens,
        tokens_used=tokens,
        slots_used=slots_used,
        device_s=ms / 1e3,
        host_s=host_ms / 1e3,
    )


def limits(target_ms=12.0, **options):
    options = {"most": 256, "max_num_seqs": 8} | options
    return ItlLimits(SIZES, target_ms / 1e3, **options)


def run(adaptive, ms_of, num_steps):
    """Steps of whatever size is asked for; the sizes."""
    seen = []
    for _ in range(num_steps):
        seen.append(adaptive.size)
        adaptive.landed(step(adaptive.size, ms_of(adaptive.size)))
    return seen


def test_the_largest_size_that_keeps_the_target():
    """2 ms, and 0.05 for each token: 128 take 8.4 ms and 256 would take 14.8."""
    adaptive = limits()
    adaptive.landed(step(0, 2.0))
    sizes = run(adaptive, lambda size: 2 + 0.05 * size, 100)
    assert sizes[0] == 32 and sizes[2 * ENOUGH] == 128 and set(sizes) == {32, 64, 128}


def test_a_step_that_is_too_long_makes_it_smaller_and_it_waits_before_it_tries_again():
    """128 tokens cost more than in proportion, which only a try can tell."""
    adaptive = limits()
    sizes = run(adaptive, lambda size: 20.0 if size >= 128 else 0.05 * size, 20 * HOLD)
    tries = [number for number, size in enumerate(sizes) if size == 128]
    waits = [later - sooner for sooner, later in itertools.pairwise(tries)]
    assert len(tries) / len(sizes) < 0.01 and waits == sorted(waits) and waits[0] >= HOLD
    assert set(sizes[10:]) == {64, 128}


def test_where_no_size_keeps_it_the_smallest_goes_on():
    assert set(run(limits(), lambda size: 50.0, 20)) == {32}


def test_a_context_that_grows_makes_it_smaller():
    adaptive = limits()
    run(adaptive, lambda size: 0.05 * size, 50)
    assert adaptive.size == 128
    run(adaptive, lambda size: 8.0 + 0.05 * size, 5)
    assert adaptive.size == 64


def test_where_nothing_runs_all_of_the_budget_is_used():
    adaptive = limits()
    assert adaptive(SchedulerView(0.0, 3, 0, 9)) == StepLimits(256, 8)
    assert adaptive(SchedulerView(0.0, 3, 1, 9)) == StepLimits(32, 8)


def test_the_host_counts_where_it_is_slower_and_beside_the_device_where_it_waits_for_it():
    for overlap, host_ms, size in ((True, 11.0, 64), (True, 13.0, 32), (False, 5.0, 32)):
        adaptive = limits(overlap=overlap, most=64)
        for _ in range(ENOUGH):
            adaptive.landed(step(0, 10.0))
            adaptive.landed(step(32, 10.0, host_ms=host_ms))
        adaptive.landed(step(64, 10.0, host_ms=host_ms))
        assert adaptive.size == size, (overlap, host_ms)


def test_no_size_is_smaller_than_a_page_or_larger_than_the_budget():
    assert limits(least=64).size == 64
    assert set(run(limits(most=100), lambda size: 0.01, 50)) == {32, 64}


def figures(**options):
    """p99 ITL and mean TTFT, in ms, of a simulation: 2 ms a step, and 0.05 for each place of a prompt."""
    config = EngineConfig(
        max_num_seqs=16, page_size=16, max_model_len=1024, max_num_batched_tokens=512, **options
    )
    costs = {b: BucketCost(2e-3 + 5e-5 * b.tokens) for b in buckets_of(config, 1024)}
    sim = Simulated(config, 1024, 2000, 264, CostTable(costs, HostCost()), {})
    workload = make_workload(
        "random", num_prompts=300, seed=0, vocab_size=264, max_model_len=1024, input_len=400,
        output_len=40, random_range_ratio=0.5, request_rate=20.0,
    )  # fmt: skip
    found = latencies(drive(SimulatedSubject(sim).new_engine(ARMS["continuous"], 16), workload))
    return found.itl.p99, found.ttft.mean


@pytest.mark.parametrize("target_ms", [10.0, 16.0])
def test_a_simulation_keeps_the_target_and_first_tokens_come_sooner_than_with_the_smallest_budget(target_ms):
    itl, ttft = figures(target_itl_ms=target_ms)
    assert itl <= target_ms < figures()[0]
    smallest_itl, smallest_ttft = figures(token_buckets=(32,))
    assert smallest_itl < target_ms and ttft < smallest_ttft


def test_an_llm_follows_what_its_steps_take(tmp_path):
    """No step is so fast: beside sequences that decode, prompts get the smallest size, without compiling."""
    options = {
        "device": "cpu",
        "max_num_seqs": 4,
        "page_size": 16,
        "decode_buckets": (4,),
        "token_buckets": (32, 64),
        "samplers": ("filtered",),
        "show_progress": False,
    }
    with LLM(write_model(tmp_path / "tiny"), target_itl_ms=1e-3, **options) as llm:
        llm.prepare()
        records, limits = [], llm.engine.scheduler.limits
        llm.engine.pipeline.on_record = lambda record: (records.append(record), limits.landed(record))
        params = [SamplingParams(max_tokens=4 + number, ignore_eos=True) for number in range(6)]
        outputs = llm.generate([[3] * 50] * 6, params, use_tqdm=False)
        assert all(output.error is None for output in outputs) and not llm.runner.compilations_after_warmup
    assert {record.tokens for record in records[1:] if record.tokens_used and record.slots_used} == {32}
