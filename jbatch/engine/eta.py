"""How long requests still take, by tokens: they differ too much in length to count them."""

from __future__ import annotations

import math

import numpy as np

from jbatch.sampling_params import SamplingParams

ENOUGH = 8  # lines that have ended, before a range is given
P90 = 1.2816  # of the standard normal distribution: 10 % are above, and 10 % below its negative


def bound_of(params: SamplingParams, room: int) -> int:
    """Tokens that a request may generate; `room`: those of a sequence."""
    return params.n * (room if params.max_tokens is None else params.max_tokens)


class TokensLeft:
    """Estimates the tokens that are still to come.

    A line's bound is its max_tokens (the context's length where it names none), times n. It is expected to
    take what a predictor says, or without one all that it may; times the share of what was expected of them
    that ended lines took, once any has. Lines that were not read yet have the mean bound of the input, and
    are expected to take as much of it as those that were read. The estimate is low at first, as short outputs
    end first.

    The range is from the 10 % to the 90 % quantile: lines differ from what is expected, and so does the mean
    of those that ended from the mean of all.
    """

    def __init__(self, mean_bound: float, num_lines: int):
        self._mean_bound, self._num_unread = mean_bound, num_lines
        self._bound = self._expected = 0.0  # of all lines that were read
        self._running_expected = self._running_tokens = 0.0
        self._ended_expected = self._ended_tokens = 0.0
        self._ended_squares = np.zeros(3)  # of tokens, of tokens times expected ones, and of expected ones
        self._num_running = self._num_ended = 0
        self.num_tokens = 0

    def begin(self, bound: int, expected: int) -> None:
        """Count a line that enters the engine."""
        self._num_unread -= 1
        self._num_running += 1
        self._bound += bound
        self._expected += expected
        self._running_expected += expected

    def skip(self) -> None:
        """Count a line that needs no tokens."""
        self._num_unread -= 1

    def add(self, num_tokens: int) -> None:
        """Count tokens that came."""
        self.num_tokens += num_tokens
        self._running_tokens += num_tokens

    def end(self, expected: int, num_tokens: int) -> None:
        """Count a line that left the engine with so many tokens."""
        self._running_expected -= expected
        self._running_tokens -= num_tokens
        self._ended_expected += expected
        self._ended_tokens += num_tokens
        self._ended_squares += num_tokens**2, num_tokens * expected, expected**2
        self._num_running -= 1
        self._num_ended += 1

    @property
    def _share(self) -> float:
        return self._ended_tokens / self._ended_expected if self._ended_expected else 1.0

    @property
    def left(self) -> float:
        of_bound = self._expected / self._bound if self._bound else 1.0
        unread = of_bound * self._mean_bound * max(0, self._num_unread)
        return max(0.0, self._share * (self._running_expected + unread) - self._running_tokens)

    @property
    def range(self) -> tuple[float, float] | None:
        """From how many tokens to how many, in 8 of 10 cases; None where too few lines have ended."""
        if self._num_ended < ENOUGH:
            return None
        num_left = self._num_running + max(0, self._num_unread)
        squares = float(self._ended_squares @ np.array((1, -2 * self._share, self._share**2)))
        variance = max(0.0, squares) / self._num_ended  # of how far they were off
        off = P90 * math.sqrt(variance * (num_left + num_left**2 / self._num_ended))
        return max(0.0, self.left - off), self.left + off

    def note(self, elapsed_s: float) -> str:
        """Tokens per second since the start, and the time left at that rate: at last as a range. Empty before
        the first token."""
        rate = self.num_tokens / elapsed_s if elapsed_s > 0 else 0.0
        if not rate:
            return ""
        known = self.range
        left = duration(self.left / rate) if known is None else span(known[0] / rate, known[1] / rate)
        return f"{rate:,.0f} tokens/s, {left} left"


def span(low: float, high: float) -> str:
    """Two numbers of seconds in the unit that suits the larger, as "3-5 min"."""
    units = ("s", 1, 90, 0), ("min", 60, 5400, 0), ("h", 3600, math.inf, 1)
    unit, size, _, digits = next(unit for unit in units if high < unit[2])
    first, last = (f"{seconds / size:.{digits}f}" for seconds in (low, high))
    return f"{last if first == last else f'{first}-{last}'} {unit}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or with days where there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour}:{minute:02}:{second:02}"
