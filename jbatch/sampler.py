"""The six variants: what drawing a token takes."""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Sampler(enum.IntEnum):
    """What drawing a token takes, as bits: a program of one serves requests of every other whose bits it has.

    The union of two is one of these six, so that a step of any requests has a program by name.
    """

    GREEDY = 0b0000
    PLAIN = 0b0001  # temperature
    FILTERED = 0b0011  # and top-k, top-p, min-p
    LOGPROBS = 0b0111  # and log-probabilities, of output and prompt
    PROCESSED = 0b1011  # FILTERED and what changes logits: penalties, biases, bans, masks, a user's function
    EXTENDED = 0b1111  # all of these

    @property
    def filters(self) -> bool:
        """Whether its programs leave out unlikely tokens."""
        return self & 0b0010 > 0

    @property
    def reports(self) -> bool:
        """Whether its programs report log-probabilities."""
        return self & 0b0100 > 0

    @property
    def processes(self) -> bool:
        """Whether its programs change logits."""
        return self & 0b1000 > 0

    def union(self, other: Sampler) -> Sampler:
        """The least that serves both."""
        return Sampler(self | other)

    def choose(self, compiled: Iterable[Sampler]) -> Sampler | None:
        """The least of those that are compiled and can do this, or None."""
        return min((sampler for sampler in compiled if sampler & self == self), default=None)


def to_compile(needed: Iterable[Sampler]) -> tuple[Sampler, ...]:
    """Ways of drawing that serve requests of all these, ascending.

    Where some report log-probabilities and others change logits, a step of both takes EXTENDED, which then
    serves each of them too: fewer programs.
    """
    needed = set(needed)
    if any(sampler.reports for sampler in needed) and any(sampler.processes for sampler in needed):
        needed = {s for s in needed if not s.reports and not s.processes} | {Sampler.EXTENDED}
    return tuple(sorted(needed))


def with_unions(samplers: Iterable[Sampler]) -> tuple[Sampler, ...]:
    """These and the unions of any of them, ascending: what steps of their requests take."""
    samplers = set(samplers)
    return tuple(sorted(samplers | {one.union(other) for one in samplers for other in samplers}))
