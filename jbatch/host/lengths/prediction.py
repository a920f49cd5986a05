"""A predicted length: how it is distributed, for the same prompt has answers of many lengths."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from jbatch.errors import RequestError
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


def predicted(predictor: Predictor, request: Request, history: History) -> Prediction:
    """What a predictor says of a request. Raises RequestError where it fails, or gives no Prediction: of this
    request alone, for it is asked before the request is queued."""
    name = type(predictor).__name__
    try:
        prediction = predictor.predict(request, history)
    except Exception as error:  # whatever a user's predictor raises
        reason = f"it fails for this request: {type(error).__name__}: {error}"
        raise RequestError("predictor", name, reason, code="predictor_failed") from error
    if isinstance(prediction, Prediction) and len(prediction.quantiles) == len(LEVELS):
        numbers = prediction.expected, *prediction.quantiles
        if all(isinstance(number, Real) and 0 <= number < math.inf for number in numbers):
            return prediction
    raise RequestError(
        "predictor",
        name,
        f"it must give a Prediction of numbers of at least 0, with {len(LEVELS)} quantiles, and gave "
        f"{prediction!r:.80} for this request",
        code="predictor_failed",
    )
