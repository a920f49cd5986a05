"""A predictor that was trained: quantile regression by boosted trees, as plain data.

`jbatch predictor train` makes one. Nothing is unpickled: a file holds numbers.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jbatch.errors import JBatchError
from jbatch.host.lengths.features import FEATURES, features
from jbatch.host.lengths.history import History
from jbatch.host.lengths.prediction import LEVELS, Prediction, bounded
from jbatch.host.request import Request
from jbatch.model_dir.data_file import Kind, read_data_file

SCHEMA = 1
MISSING = -1.0  # in the place of NaN: all features are at least 0


class PredictorError(JBatchError, ValueError):
    """A predictor that cannot be read: names the file and what is wrong."""


KIND = Kind("predictor", SCHEMA, "predictor", "jbatch predictor train", PredictorError)


@dataclasses.dataclass(frozen=True)
class Trees:
    """The boosted trees of one level: a prediction is `base` and the sum of what each tree's leaf says.

    A node goes left where its feature is at most its threshold. A leaf's children are itself.
    """

    base: float
    feature: Int[np.ndarray, "trees nodes"]
    threshold: Float[np.ndarray, "trees nodes"]
    left: Int[np.ndarray, "trees nodes"]
    right: Int[np.ndarray, "trees nodes"]
    value: Float[np.ndarray, "trees nodes"]  # with the learning rate
    depth: int

    def predict(self, row: Float[np.ndarray, " features"]) -> float:
        """For one row of features."""
        trees = np.arange(len(self.feature))
        nodes = np.zeros(len(trees), np.int64)
        for _ in range(self.depth):
            left = row[self.feature[trees, nodes]] <= self.threshold[trees, nodes]
            nodes = np.where(left, self.left[trees, nodes], self.right[trees, nodes])
        return self.base + float(self.value[trees, nodes].sum())


@dataclasses.dataclass(frozen=True)
class Learned:
    """Predicts logarithms of lengths, a level each.

    Attributes:
      about: what it was trained on.
    """

    levels: tuple[Trees, ...]
    about: dict[str, Any]

    def predict(self, request: Request, history: History) -> Prediction:
        """From the request's features alone; the median is what is expected."""
        row = np.nan_to_num(features(request), nan=MISSING)
        quantiles = [float(np.expm1(trees.predict(row))) for trees in self.levels]
        return bounded(quantiles[LEVELS.index(0.5)], quantiles, request)

    def write(self, path: str | Path) -> None:
        """As JSON, for `read_predictor`."""
        trees = [
            {name: np.asarray(value).tolist() for name, value in vars(each).items()} for each in self.levels
        ]
        document = {"schema": SCHEMA, "kind": KIND.name, "features": FEATURES, "levels": LEVELS}
        Path(path).write_text(json.dumps(document | {"trees": trees, "about": self.about}) + "\n")


def read_predictor(path: str | Path) -> Learned:
    """What `Learned.write` wrote. Raises PredictorError, naming the file."""
    document = read_data_file(path, KIND)
    wanted = {"features": list(FEATURES), "levels": list(LEVELS)}
    for name, value in wanted.items():
        if document.get(name) != value:
            raise PredictorError(f"{path}: {name}={document.get(name)!r:.80}: must be {value}: train it anew")
    try:
        levels = tuple(_trees(entry) for entry in document["trees"])
        if len(levels) != len(LEVELS):
            raise ValueError(f"{len(levels)} levels of trees, not {len(LEVELS)}")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise PredictorError(f"{path}: trees: {error}") from None
    return Learned(levels, document.get("about", {}))


def _trees(entry: dict[str, Any]) -> Trees:
    """Trees of a file, whose nodes lead nowhere else."""
    integers = {name: np.array(entry[name], np.int64) for name in ("feature", "left", "right")}
    numbers = {name: np.array(entry[name], np.float64) for name in ("threshold", "value")}
    shapes = {array.shape for array in (*integers.values(), *numbers.values())}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"arrays of shapes {sorted(shapes)}: must be one [trees, nodes]")
    num_nodes = next(iter(shapes))[1]
    for name, most in (("feature", len(FEATURES)), ("left", num_nodes), ("right", num_nodes)):
        if integers[name].size and not 0 <= integers[name].min() <= integers[name].max() < most:
            raise ValueError(f"{name} beyond 0 to {most - 1}")
    if not all(np.isfinite(array).all() for array in numbers.values()):
        raise ValueError("numbers that are not finite")
    base, depth = float(entry["base"]), int(entry["depth"])
    if not np.isfinite(base):
        raise ValueError(f"base={base}: must be a finite number")
    if not 0 <= depth <= num_nodes:  # no way down is longer
        raise ValueError(f"depth={depth}: must be from 0 to {num_nodes}")
    return Trees(base, **integers, **numbers, depth=depth)
