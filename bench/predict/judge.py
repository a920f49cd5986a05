"""How good predictions are, on requests in the order in which they ended: always beside the running mean."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

from bench.predict.samples import Sample
from jbatch.host.lengths.history import History
from jbatch.host.lengths.prediction import LEVELS, Predictor

COVERED = (0.5, 0.9)  # levels whose coverage is shown


class Score(NamedTuple):
    """A predictor's errors.

    Attributes:
      mae: mean absolute error of what was expected, tokens.
      tau: Kendall's tau-b between expected and true lengths; None where either does not vary.
      coverage: share of answers no longer than the quantile, by level: right where it is the level.
    """

    mae: float
    tau: float | None
    coverage: dict[float, float]


def judge(predictor: Predictor, seen: Sequence[Sample], judged: Sequence[Sample]) -> Score:
    """Predict each of `judged` from what ended before it: `seen`, and those of `judged` before it."""
    history = History()
    for sample in seen:
        history.add(len(sample.request.prompt_token_ids), sample.output_len)
    predictions = []
    for sample in judged:
        predictions.append(predictor.predict(sample.request, history))
        history.add(len(sample.request.prompt_token_ids), sample.output_len)
    expected = np.array([prediction.expected for prediction in predictions])
    quantiles = np.array([prediction.quantiles for prediction in predictions])
    lengths = np.array([sample.output_len for sample in judged])
    tau = float(kendalltau(expected, lengths).statistic)
    return Score(
        float(np.abs(expected - lengths).mean()),
        None if np.isnan(tau) else tau,
        {level: float((lengths <= quantiles[:, LEVELS.index(level)]).mean()) for level in COVERED},
    )


def floor_mae(samples: Sequence[Sample]) -> float | None:
    """The mean absolute error that remains to one who knows the median of each prompt's answers; None where
    no prompt has several."""
    by_prompt: Mapping[str, list[int]] = defaultdict(list)
    for sample in samples:
        by_prompt[sample.request.request_id].append(sample.output_len)
    repeated = [lengths for lengths in by_prompt.values() if len(lengths) > 1]
    if not repeated:
        return None
    errors = itertools.chain.from_iterable(np.abs(np.array(each) - np.median(each)) for each in repeated)
    return float(np.mean(list(errors)))
