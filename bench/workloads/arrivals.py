"""When requests arrive, in seconds after a run's begin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

BURST_INTERVAL_S = (
    3600.0  # every arm is through with a burst before the next; idle time is skipped, not waited
)


def times(name: str, given: np.ndarray, rng: np.random.Generator, options: Any) -> np.ndarray:
    """Arrival times [num_prompts] before scaling: all 0 where closed; at a rate where there is one; else as
    the workload says: `given`, or bursts of at least `options.burst_size`."""
    if options.closed:
        return np.zeros(len(given))
    if options.request_rate != math.inf:
        return at_rate(len(given), options.request_rate, options.burstiness, rng)
    if name == "bursty_traffic":
        return bursts(len(given), options.burst_size)
    return given


def at_rate(size: int, rate: float, burstiness: float, rng: np.random.Generator) -> np.ndarray:
    """Arrival times with gamma-distributed gaps of mean 1 / rate, whose coefficient of variation is
    burstiness ** -0.5, so that 1 is a Poisson process (as `vllm bench serve`)."""
    gaps = rng.gamma(burstiness, 1 / (rate * burstiness), size)
    gaps[:1] = 0
    return np.cumsum(gaps)


def bursts(size: int, burst_size: int) -> np.ndarray:
    """Arrival times of as many equal bursts as are no smaller than `burst_size`, far apart; of a single one
    where there are too few requests."""
    num_bursts = max(1, size // burst_size)
    return np.sort(np.arange(size) % num_bursts) * BURST_INTERVAL_S
