"""Whether one more sequence may join: what the running ones will need of the page pool, looked at in advance.

A sequence that finds no page for its next token takes those of a younger one, which computes its tokens again
later. To admit fewer sequences is to preempt fewer. A running sequence is never held back by this, and where
nothing runs, the first in line is always admitted.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from jbatch.config import AdmissionName
from jbatch.host.lengths.prediction import LEVELS
from jbatch.host.request import Sequence

NUM_MOMENTS = 16  # steps ahead that a forecast looks at


class Pool(NamedTuple):
    """Pages that sequences may have together, and tokens of a page."""

    num_usable: int
    page_size: int


class Reserve(Protocol):
    """Decides whether `sequence` may join those that run."""

    def admits(self, running: Seq[Sequence], sequence: Sequence) -> bool:
        """It finds its first pages free; this is about those that come after."""


class Optimistic:
    """Whoever finds pages may join. Most sequences run at once, and preemptions come as they come."""

    def admits(self, running: Seq[Sequence], sequence: Sequence) -> bool:
        """Always."""
        return True


class NoEvict(NamedTuple):
    """Room is kept for the longest that each sequence may become: nothing is ever preempted."""

    pool: Pool

    def admits(self, running: Seq[Sequence], sequence: Sequence) -> bool:
        """Where all of them fit at their longest, as if none shared a page."""
        size = self.pool.page_size
        return sum([-(-each.max_len // size) for each in (*running, sequence)]) <= self.pool.num_usable


class Forecast(NamedTuple):
    """Room is kept for what sequences are likely to become, by their predicted lengths.

    At several moments ahead, the pages that those still running then will have are taken to be normally
    distributed: each of them has ended by then, or not, by the distribution of its length, given that it is
    as long as it is. One may join where at each moment the pool is too small with at most `probability`.
    """

    pool: Pool
    probability: float

    def admits(self, running: Seq[Sequence], sequence: Sequence) -> bool:
        """Where it would hardly make a preemption come."""
        if not running:
            return True
        return self.most_pages((*running, sequence)) <= self.pool.num_usable

    def most_pages(self, sequences: Seq[Sequence]) -> float:
        """Pages that they exceed with `probability` at most, at each moment alone."""
        known = np.array([each.num_planned for each in sequences], float)[:, None]
        most = np.array([each.max_len for each in sequences], float)[:, None]
        moments = np.unique(np.geomspace(1.0, max(1.0, (most - known).max()), NUM_MOMENTS).round())
        tokens = np.minimum(known + moments, most)
        pages = np.ceil(tokens / self.pool.page_size)
        running = np.stack([_running_at(each, moments) for each in sequences])
        mean = (running * pages).sum(axis=0)
        variance = (running * (1 - running) * pages**2).sum(axis=0)
        likely = mean + NormalDist().inv_cdf(1 - self.probability) * np.sqrt(variance)
        return float(np.minimum(likely, pages.sum(axis=0)).max())  # never more than if none had ended


def _running_at(sequence: Sequence, moments: Float[np.ndarray, " moments"]) -> Float[np.ndarray, " moments"]:
    """The probability that a sequence still runs after so many steps more."""
    request = sequence.request
    done, most = sequence.num_planned - sequence.num_prompt, float(request.max_tokens)
    if request.length_quantiles is None:
        return (done + moments <= request.expected_len).astype(float)
    lengths = np.array((0.0, *request.length_quantiles, most))
    levels = np.array((0.0, *LEVELS, 1.0))
    still = 1.0 - np.interp(done + moments, lengths, levels)
    now = 1.0 - float(np.interp(done, lengths, levels))
    if now < 1.0 - LEVELS[-1]:  # longer than almost all: as likely to end at any of its last tokens
        return np.clip((most - done - moments) / max(1.0, most - done), 0.0, 1.0)
    return still / now


def reserve_of(name: AdmissionName, pool: Pool, max_preemption_probability: float) -> Reserve:
    """A reserve by its name."""
    if name == "no-evict":
        return NoEvict(pool)
    return Forecast(pool, max_preemption_probability) if name == "forecast" else Optimistic()
