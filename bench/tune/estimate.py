"""Costs of steps between those that were measured.

A table of costs is of one engine's buckets, and a tuned engine may have others. What lies between two
measured sizes is taken to lie between their costs; nothing is said of larger ones than were measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jbatch.seam.bucket import Bucket
from jbatch.sim.cost import SECONDS, BucketCost, CostError, CostTable
from jbatch.sim.load import Load

CONTEXT = 128  # tokens


def largest_sizes(table: CostTable) -> tuple[int, int]:
    """Slots and prompt tokens of the largest steps that were measured."""
    return max(bucket.slots for bucket in table.buckets), max(bucket.tokens for bucket in table.buckets)


def costs_for(table: CostTable, buckets: Iterable[Bucket]) -> CostTable:
    """Costs of these buckets: measured ones as they are, the others estimated.

    Raises CostError for a bucket beyond what was measured.
    """
    return dataclasses.replace(table, buckets={bucket: _cost(table, bucket) for bucket in buckets})


def _cost(table: CostTable, bucket: Bucket) -> BucketCost:
    if bucket in table.buckets:
        return table.buckets[bucket]
    if not bucket.tokens:
        decode = {b.slots: cost for b, cost in table.buckets.items() if not b.tokens and b.steps == 1}
        return _between(decode, bucket.slots, bucket)
    return _mixed(table, bucket)


def _mixed(table: CostTable, bucket: Bucket) -> BucketCost:
    """A step with prompts was measured with the most slots of an engine. With fewer it is cheaper by as much
    as decoding is, where contexts have `CONTEXT` tokens; and never cheaper than decoding alone."""
    measured = sorted({b.slots for b in table.buckets if b.tokens})
    slots = next((size for size in measured if size >= bucket.slots), measured[-1] if measured else 0)
    with_prompts = {b.tokens: cost for b, cost in table.buckets.items() if b.tokens and b.slots == slots}
    full = _between(with_prompts, bucket.tokens, bucket)
    if bucket.slots == slots:
        return full
    own = max(1, bucket.slots)
    load = Load(bucket, own, own * CONTEXT, CONTEXT, 0, 0, 0)
    all_slots, fewer = (_cost(table, Bucket(number, 0)).step_s(load) for number in (slots, own))
    least_s = fewer - (full.step_s(load) - full.base_s)
    return full._replace(base_s=max(full.base_s - all_slots + fewer, least_s, 0.0), num_steps=0)


def _between(costs: dict[int, BucketCost], size: int, bucket: Bucket) -> BucketCost:
    """What lies between the costs of two sizes; below the smallest, the smallest's."""
    above = min((known for known in costs if known >= size), default=None)
    if above is None:
        most = max(costs, default=0)
        raise CostError(
            f"no costs of a step of {bucket.slots} slots and {bucket.tokens} tokens: {most} is the most that "
            "was measured; `jbatch bench calibrate` takes --max-num-seqs and --max-num-batched-tokens"
        )
    below = max((known for known in costs if known <= size), default=above)
    if above == below:
        return costs[above]
    share = (size - below) / (above - below)
    low, high = costs[below], costs[above]
    seconds = {
        name: getattr(low, name) + share * (getattr(high, name) - getattr(low, name)) for name in SECONDS
    }
    return high._replace(**seconds, num_steps=0)
