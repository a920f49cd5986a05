"""Predictors that need no training."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping

from jbatch.host.lengths.history import History
from jbatch.host.lengths.prediction import LEVELS, Prediction, bounded
from jbatch.host.request import Request


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same for every request."""

    num_tokens: float

    def predict(self, request: Request, history: History) -> Prediction:
        """Always `num_tokens`, as far as the request may have so many."""
        return bounded(self.num_tokens, [self.num_tokens] * len(LEVELS), request)


class RunningMean:
    """The mean of what has ended, and its distribution. Until something has, `max_tokens`."""

    def predict(self, request: Request, history: History) -> Prediction:
        """The same for every request at one time."""
        if not len(history):
            return Constant(request.max_tokens).predict(request, history)
        return bounded(history.mean, history.quantiles(LEVELS), request)


class PromptLength:
    """In proportion to the prompt, as what has ended was. Until something has, `max_tokens`."""

    def predict(self, request: Request, history: History) -> Prediction:
        """The prompt's length times the quantiles of that proportion; its median is what is expected."""
        if not len(history):
            return Constant(request.max_tokens).predict(request, history)
        quantiles = len(request.prompt_token_ids) * history.ratios(LEVELS)
        return bounded(quantiles[LEVELS.index(0.5)], quantiles, request)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Knows the lengths, by `request_id`: a bound for all others. With `sigma`, times a lognormal error.

    Attributes:
      sigma: of the error's logarithm; 0.5 leaves two thirds of the predictions within a factor of 1.65.
      seed: of the errors; a request's own is the same whenever it is asked for.
    """

    lengths: Mapping[str, int]
    sigma: float = 0.0
    seed: int = 0

    def predict(self, request: Request, history: History) -> Prediction:
        """Raises KeyError for a request that it does not know."""
        length = float(self.lengths[request.request_id])
        if self.sigma:
            error = random.Random(f"{self.seed} {request.request_id}").gauss(0.0, self.sigma)  # noqa: S311
            length *= math.exp(error)
        return bounded(length, [length * math.exp(self.sigma * z) for z in NORMAL], request)


NORMAL = (-1.2816, -0.6745, 0.0, 0.6745, 1.2816, 2.3263)  # the standard normal distribution's, at LEVELS
