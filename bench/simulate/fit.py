"""From steps whose times were measured to the costs of a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from jbatch.seam.bucket import Bucket
from jbatch.sim.cost import SECONDS, BucketCost, HostCost
from jbatch.sim.load import Load

ENOUGH = 24  # steps of a bucket, for a model of its own
NUM_FACTORS = 50
PASSES = 3
BLOCKS = 1, 16, 32, 64, 128, 256  # tokens that a kernel may read at once


class TimedStep(NamedTuple):
    """A step that was measured."""

    load: Load
    device_s: float
    host_s: float  # between the results of the two steps before and after it; NaN where that is not known


def fit(steps: Iterable[TimedStep], buckets: Iterable[Bucket]) -> dict[Bucket, BucketCost]:
    """A model of each bucket: of its own steps where there are enough, else of the nearest bucket that has
    them, with its times in proportion; of no steps at all, see `_unseen`.

    Raises ValueError where no bucket has enough.
    """
    measured: dict[Bucket, list[TimedStep]] = defaultdict(list)
    for step in steps:
        measured[step.load.bucket].append(step)
    models = {bucket: _fit(own) for bucket, own in measured.items() if len(own) >= ENOUGH}
    if not models:
        most = max((len(own) for own in measured.values()), default=0)
        raise ValueError(f"no bucket has {ENOUGH} measured steps; most have {most}")
    few = {bucket: _like(bucket, own, models) for bucket, own in measured.items() if bucket not in models}
    known = models | few
    return {bucket: known.get(bucket) or _unseen(bucket, known) for bucket in buckets}


def _fit(steps: Sequence[TimedStep]) -> BucketCost:
    """The best of the models with blocks of each size."""
    times = np.array([step.device_s for step in steps])
    models = [_fit_blocks(steps, times, block) for block in BLOCKS]
    _, best = min(models, key=lambda model: model[0])
    return _with_chance(best, steps)


def _fit_blocks(
    steps: Sequence[TimedStep], times: Float[np.ndarray, " steps"], block: int
) -> tuple[float, BucketCost]:
    """A model and its error. Least squares, with errors as large as the steps; no coefficient below 0: steps
    cannot be made cheaper by more work."""
    features = np.array([_features(step.load, block) for step in steps], float)
    scale = np.maximum(features.max(axis=0), 1e-9)
    weights = np.full(len(steps), 1 / np.median(times))
    for _ in range(PASSES):  # the weights are the model's own: those of measured times favour short ones
        coefficients, _ = nnls(features / scale * weights[:, None], times * weights)
        modelled = features / scale @ coefficients
        weights = 1 / modelled
    error = float(np.mean(np.abs(times / modelled - 1)))  # one slow step says nothing of blocks
    seconds = dict(zip(SECONDS, (coefficients / scale).tolist(), strict=True))
    return error, BucketCost(**seconds, block=block, num_steps=len(steps))


def _features(load: Load, block: int) -> tuple[float, ...]:
    """In the order of SECONDS."""
    blocks = -(-load.longest // block) * block
    return 1.0, load.keys, blocks, load.tokens, load.pairs, load.chunks


def _with_chance(model: BucketCost, steps: Sequence[TimedStep]) -> BucketCost:
    """The model with how its steps differ from it; its total is that of the steps."""
    modelled = np.array([model.step_s(step.load) for step in steps])
    times = np.array([step.device_s for step in steps])
    groups = np.array_split(np.sort(times / modelled), min(NUM_FACTORS, len(steps)))
    factors = np.array([group.mean() for group in groups])  # not quantiles: a mean keeps what a tail takes
    factors *= times.sum() / modelled.sum() / factors.mean()
    return model._replace(factors=tuple(factors.tolist()))


def _like(bucket: Bucket, steps: Sequence[TimedStep], models: Mapping[Bucket, BucketCost]) -> BucketCost:
    """The model of the nearest bucket, a larger one if there is any, scaled to what was measured."""
    model = models[_nearest(bucket, models)]
    ratio = sum(step.device_s for step in steps) / sum(model.step_s(step.load) for step in steps)
    scaled = {name: ratio * getattr(model, name) for name in SECONDS}
    return model._replace(**scaled, num_steps=len(steps))


def _unseen(bucket: Bucket, known: Mapping[Bucket, BucketCost]) -> BucketCost:
    """The model of the next larger bucket; beyond the largest, that one's with the time of an empty step in
    proportion to its size: what nobody measured must not look cheap."""
    nearest = _nearest(bucket, known)
    growth = max(1.0, bucket.num_places / nearest.num_places)
    return known[nearest]._replace(base_s=growth * known[nearest].base_s, num_steps=0)


def _nearest(bucket: Bucket, known: Iterable[Bucket]) -> Bucket:
    return min(known, key=lambda other: _distance(bucket, other))


def _distance(bucket: Bucket, other: Bucket) -> tuple[bool, bool, float]:
    smaller = other.num_places < bucket.num_places
    return bool(other.tokens) != bool(bucket.tokens), smaller, abs(other.num_places - bucket.num_places)


def fit_host(steps: Iterable[TimedStep], request_s: float) -> HostCost:
    """The host's work, by the sequences that decode."""
    known = [step for step in steps if step.host_s == step.host_s]
    features = np.array([(1.0, step.load.slots) for step in known])
    (step_s, slot_s), _ = nnls(features, np.array([step.host_s for step in known]))
    return HostCost(request_s, float(step_s), float(slot_s))
