"""How long prompts and outputs are, by a workload's name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Lengths = tuple[np.ndarray, np.ndarray]  # of prompts and of outputs, tokens
Distribution = Callable[[int, np.random.Generator, Any], Lengths]

SHARE_LONG = 0.2  # of mixed_length's outputs
SHAREGPT_MEANS, SHAREGPT_SIGMA, SHAREGPT_CAP = (161, 338), 1.1, 1024


class Range(NamedTuple):
    """A uniform distribution over [low, high], both included."""

    low: int
    high: int

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Random lengths in the range."""
        return rng.integers(self.low, self.high + 1, size)


def draw(name: str, num_prompts: int, rng: np.random.Generator, options: Any) -> Lengths:
    """A workload's lengths before scaling; `options` is a WorkloadOptions."""
    return DISTRIBUTIONS[name](num_prompts, rng, options)


def _uniform_short(size: int, rng: np.random.Generator, options: Any) -> Lengths:
    return Range(32, 96).draw(size, rng), Range(32, 96).draw(size, rng)


def _mixed(size: int, rng: np.random.Generator, options: Any) -> Lengths:
    """Lengths with many short outputs, and a few long ones that a batch without refill waits for."""
    prompts, short, long = (Range(*ends).draw(size, rng) for ends in ((16, 64), (16, 64), (256, 512)))
    return prompts, np.where(rng.random(size) < SHARE_LONG, long, short)


def _random(size: int, rng: np.random.Generator, options: Any) -> Lengths:
    """Lengths that are uniform and symmetric about those of the options, as vLLM's flag of that name means
    it."""
    ratio = options.random_range_ratio
    prompts, outputs = (_around(length, ratio) for length in (options.input_len, options.output_len))
    return prompts.draw(size, rng), outputs.draw(size, rng)


def _around(length: int, ratio: float) -> Range:
    return Range(max(1, math.floor(length * (1 - ratio))), math.ceil(length * (1 + ratio)))


def _few_shot(size: int, rng: np.random.Generator, options: Any) -> Lengths:
    """Questions and short answers, as an evaluation has them behind its five examples."""
    return Range(20, 60).draw(size, rng), Range(1, 16).draw(size, rng)


def _nano(size: int, rng: np.random.Generator, options: Any) -> Lengths:
    """The lengths of nano-vllm's benchmark, which has 256 sequences."""
    return Range(100, 1024).draw(size, rng), Range(100, 1024).draw(size, rng)


def _sharegpt_like(size: int, rng: np.random.Generator, options: Any) -> Lengths:
    """Lognormal lengths, with the means of ShareGPT's conversations before the cap."""
    prompts, outputs = (_lognormal(mean, size, rng) for mean in SHAREGPT_MEANS)
    return prompts, outputs


def _lognormal(mean: float, size: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.lognormal(math.log(mean) - SHAREGPT_SIGMA**2 / 2, SHAREGPT_SIGMA, size)
    return np.clip(np.rint(drawn), 1, SHAREGPT_CAP).astype(int)


DISTRIBUTIONS: dict[str, Distribution] = {
    "uniform_short": _uniform_short,
    "mixed_length": _mixed,
    "bursty_traffic": _mixed,
    "random": _random,
    "nano": _nano,
    "sharegpt-like": _sharegpt_like,
    "prefix": _random,  # behind the prefix
    "few-shot": _few_shot,  # behind the examples
}
FEW_SHOT_PREFIX = 5 * 64  # tokens of five examples
NAMES = (*DISTRIBUTIONS, "trace")
CAPPED = ("sharegpt-like", "trace")  # lengths that the context cuts
SCENARIOS = ("uniform_short", "mixed_length", "bursty_traffic")  # that gains were claimed for
