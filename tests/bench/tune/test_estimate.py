"""Costs between measured ones."""

import pytest

from bench.tune.estimate import costs_for, largest_sizes
from jbatch.seam.bucket import Bucket
from jbatch.sim.cost import BucketCost, CostError, CostTable, HostCost


def cost(base_s):
    return BucketCost(base_s, 1e-6, token_s=1e-5, num_steps=50)


TABLE = CostTable(
    {Bucket(1, 0): cost(1e-3), Bucket(4, 0): cost(2e-3), Bucket(8, 0): cost(4e-3), Bucket(8, 64): cost(9e-3)},
    HostCost(),
)


def base_s(bucket):
    return costs_for(TABLE, [bucket]).buckets[bucket].base_s


def test_what_was_measured_stays():
    assert costs_for(TABLE, TABLE.buckets) == TABLE


def test_between_two_sizes_by_a_pencil():
    assert base_s(Bucket(6, 0)) == pytest.approx(3e-3)
    assert base_s(Bucket(2, 0)) == pytest.approx(1e-3 + 1e-3 / 3)


def test_a_step_with_prompts_and_fewer_slots():
    """9 ms with 8 slots, of which decoding 8 takes 2 more than decoding 4; and a smaller chunk is no cheaper
    than the smallest that was measured."""
    assert base_s(Bucket(4, 64)) == pytest.approx(7e-3)
    assert base_s(Bucket(4, 32)) == pytest.approx(7e-3)


def test_it_is_never_cheaper_than_decoding_alone():
    table = CostTable(TABLE.buckets | {Bucket(8, 64): cost(4e-3)}, HostCost())
    made = costs_for(table, [Bucket(1, 64)]).buckets[Bucket(1, 64)]
    assert made.base_s == pytest.approx(1e-3)


@pytest.mark.parametrize("bucket", [Bucket(9, 0), Bucket(8, 128)])
def test_nothing_is_said_of_larger_steps(bucket):
    with pytest.raises(CostError, match="is the most that was measured"):
        costs_for(TABLE, [bucket])
    assert largest_sizes(TABLE) == (8, 64)
