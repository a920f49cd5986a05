"""Costs from made-up steps whose costs are known."""

import random

import pytest

from bench.simulate.fit import ENOUGH, TimedStep, fit, fit_host
from jbatch.seam.bucket import Bucket, decode_bucket
from jbatch.sim.load import Load

SMALL, LARGE, MIXED = decode_bucket(2), decode_bucket(8), Bucket(8, 64)


def steps_of(bucket, num=200, noise=0.0, scale=1.0, seed=0, in_blocks=False):
    rng = random.Random(seed)
    steps = []
    for _ in range(num):
        slots = rng.randint(1, bucket.slots)
        longest = rng.randint(1, 500)
        tokens = rng.randint(1, bucket.tokens) if bucket.tokens else 0
        pairs, chunks = tokens * rng.randint(1, 300), rng.randint(1, 4) if tokens else 0
        load = Load(bucket, slots, slots * longest // 2, longest, tokens, pairs, chunks)
        device_s = 1e-3 + 2e-6 * load.keys + 1e-5 * load.tokens + 3e-8 * load.pairs + 2e-4 * load.chunks
        device_s += 5e-4 * -(-longest // 128) if in_blocks else 0
        factor = scale * rng.choice([1 - noise, 1 + noise])
        steps.append(TimedStep(load, factor * device_s, 1e-4 + 5e-6 * slots))
    return steps


def test_costs_are_found_again():
    cost = fit(steps_of(MIXED), [MIXED])[MIXED]
    assert cost.num_steps == 200 and cost.longest_s == pytest.approx(0, abs=1e-8)
    assert cost[:2] == pytest.approx((1e-3, 2e-6), rel=0.01)
    assert (cost.token_s, cost.pair_s, cost.chunk_s) == pytest.approx((1e-5, 3e-8, 2e-4), rel=0.01)
    assert cost.factors == pytest.approx([1.0] * len(cost.factors), rel=0.01)


def test_the_blocks_that_a_kernel_reads_are_found():
    """A step whose longest sequence has 129 tokens takes as long as one of 256."""
    cost = fit(steps_of(LARGE, noise=0.05, in_blocks=True), [LARGE])[LARGE]
    assert cost.block == 128 and cost.longest_s * 128 == pytest.approx(5e-4, rel=0.1)
    short, long = (cost.step_s(Load(LARGE, 8, 0, longest, 0, 0, 0)) for longest in (129, 256))
    assert short == long


def test_chance_keeps_the_total():
    steps = steps_of(LARGE, num=2000, noise=0.3)
    cost = fit(steps, [LARGE])[LARGE]
    assert min(cost.factors) == pytest.approx(0.7, rel=0.1) and max(cost.factors) == pytest.approx(
        1.3, rel=0.1
    )
    mean = sum(cost.factors) / len(cost.factors)
    modelled = sum(cost.step_s(step.load) for step in steps) * mean
    assert modelled == pytest.approx(sum(step.device_s for step in steps), rel=0.01)


def test_a_few_slow_steps_make_no_others_faster():
    """One in a hundred takes 20 times as long. A draw is as fast as most are, and as slow as those seldom."""
    steps = steps_of(LARGE, num=2000)
    steps[::100] = [step._replace(device_s=20 * step.device_s) for step in steps[::100]]
    factors = fit(steps, [LARGE])[LARGE].factors
    usual = factors[len(factors) // 2]
    assert factors[:-1] == pytest.approx([usual] * (len(factors) - 1), rel=0.1)
    assert factors[-1] == pytest.approx(10.5 * usual, rel=0.1), "half of the last group of 2 % is slow"


def test_a_bucket_with_few_steps_is_like_the_next_larger_one_in_proportion():
    few = steps_of(SMALL, num=3, scale=0.5)
    costs = fit([*few, *steps_of(LARGE), *steps_of(MIXED)], [SMALL, LARGE, MIXED, Bucket(8, 128)])
    assert costs[SMALL].num_steps == 3 and costs[SMALL].base_s == pytest.approx(0.5e-3, rel=0.05)
    larger = costs[Bucket(8, 128)]
    assert larger.base_s == pytest.approx(costs[MIXED].base_s * (8 + 128) / (8 + 64))
    assert larger == costs[MIXED]._replace(num_steps=0, base_s=larger.base_s)


def test_what_nobody_measured_never_looks_cheap():
    """As much as the next larger bucket, of which a few steps are enough; beyond all, an empty one by its
    size."""
    few, beyond, between = Bucket(8, 256), Bucket(8, 1024), Bucket(8, 128)
    costs = fit(steps_of(MIXED) + steps_of(few, num=3, scale=4.0), [MIXED, between, few, beyond])
    assert costs[between] == costs[few]._replace(num_steps=0)
    assert costs[beyond].base_s == pytest.approx(costs[few].base_s * (8 + 1024) / (8 + 256))
    assert costs[beyond].token_s == costs[few].token_s and costs[few].base_s > costs[MIXED].base_s


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match=f"no bucket has {ENOUGH} measured steps; most have 3"):
        fit(steps_of(SMALL, num=3), [SMALL])


def test_the_host_by_the_sequences_that_decode():
    steps = [*steps_of(LARGE), steps_of(SMALL, num=1)[0]._replace(host_s=float("nan"))]
    assert fit_host(steps, 7e-5) == pytest.approx((7e-5, 1e-4, 5e-6))
