"""Quantile regression by gradient-boosted trees (scikit-learn), taken out as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.predict.samples import Sample
from jbatch.distribution import install_hint
from jbatch.errors import JBatchError
from jbatch.host.lengths.features import features
from jbatch.host.lengths.learned import MISSING, Learned, Trees
from jbatch.host.lengths.prediction import LEVELS

NUM_TREES, DEPTH, LEARNING_RATE, LEAF = 100, 3, 0.1, 20
FEWEST = 100  # samples


def train(samples: Sequence[Sample], about: dict[str, Any], seed: int = 0) -> Learned:
    """A predictor of these. Raises JBatchError for too few of them, and without scikit-learn."""
    if len(samples) < FEWEST:
        raise JBatchError(f"{len(samples)} answers to train on: at least {FEWEST} are needed")
    rows = np.nan_to_num(np.array([features(sample.request) for sample in samples]), nan=MISSING)
    lengths = np.log1p([sample.output_len for sample in samples])
    levels = tuple(_fit(rows, lengths, level, seed) for level in LEVELS)
    return Learned(levels, about | {"num_samples": len(samples)})


def _fit(rows: np.ndarray, lengths: np.ndarray, level: float, seed: int) -> Trees:
    try:
        from sklearn.ensemble import GradientBoostingRegressor
    except ImportError as error:
        raise JBatchError(f"training needs scikit-learn ({error}): {install_hint('lab')}") from None
    model = GradientBoostingRegressor(
        loss="quantile",
        alpha=level,
        n_estimators=NUM_TREES,
        max_depth=DEPTH,
        learning_rate=LEARNING_RATE,
        min_samples_leaf=min(LEAF, max(1, len(rows) // 20)),
        random_state=seed,
    ).fit(rows, lengths)
    base = float(np.ravel(model.init_.predict(rows[:1]))[0])
    return _trees([estimator.tree_ for estimator in model.estimators_[:, 0]], base)


def _trees(trees: Sequence[Any], base: float) -> Trees:
    """Trees of one size each, leaves leading to themselves."""
    num_nodes = max(tree.node_count for tree in trees)
    shape = len(trees), num_nodes
    integers = {name: np.zeros(shape, np.int64) for name in ("feature", "left", "right")}
    threshold, value = np.zeros(shape), np.zeros(shape)
    for idx, tree in enumerate(trees):
        nodes = np.arange(tree.node_count)
        leaf = tree.children_left < 0
        integers["left"][idx, nodes] = np.where(leaf, nodes, tree.children_left)
        integers["right"][idx, nodes] = np.where(leaf, nodes, tree.children_right)
        integers["feature"][idx, nodes] = np.where(leaf, 0, tree.feature)
        threshold[idx, nodes] = np.where(leaf, 0.0, tree.threshold)
        value[idx, nodes] = LEARNING_RATE * tree.value[:, 0, 0]
    return Trees(base, **integers, threshold=threshold, value=value, depth=DEPTH)
