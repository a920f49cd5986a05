"""A predicted length: how it is distributed, for the same prompt has answers of many lengths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from jbatch.host.lengths.history import History
from jbatch.host.request import Request

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


class Prediction(NamedTuple):
    """Output tokens of a request.

    Attributes:
      expected: one number for all of it.
      quantiles: at LEVELS, ascending.
    """

    expected: float
    quantiles: tuple[float, ...]

    def at(self, level: float) -> float:
        """The length that an answer stays below with probability `level`, interpolated."""
        return float(np.interp(level, LEVELS, self.quantiles))


class Predictor(Protocol):
    """Predicts from a request, and from what ended before it came."""

    def predict(self, request: Request, history: History) -> Prediction:
        """Output tokens of `request`."""


def bounded(expected: float, quantiles: Iterable[float], request: Request) -> Prediction:
    """A prediction that a request can keep: from 1 to its `max_tokens`, and ascending."""
    most = float(max(1, request.max_tokens))
    values: Float[np.ndarray, " levels"] = np.clip(np.maximum.accumulate(list(quantiles)), 1.0, most)
    return Prediction(float(np.clip(expected, 1.0, most)), tuple(values.tolist()))
