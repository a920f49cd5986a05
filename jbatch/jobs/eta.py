"""How long a job still takes, by tokens: requests differ too much in length to count them."""

from __future__ import annotations


class TokensLeft:
    """Estimates the tokens that are still to come.

    A line's bound is its max_tokens (the context's length where it names none), times n. A line that has not
    ended is expected to take its bound times the share of their bounds that ended lines took; before any has,
    all of it. Lines that were not read yet have the mean bound of the input. The estimate is low
    at first, as short outputs end first.
    """

    def __init__(self, mean_bound: float, num_lines: int):
        self._mean_bound, self._num_unread = mean_bound, num_lines
        self._running_bound = self._running_tokens = 0.0
        self._ended_bound = self._ended_tokens = 0.0
        self.num_tokens = 0

    def begin(self, bound: int) -> None:
        """Count a line that enters the engine."""
        self._num_unread -= 1
        self._running_bound += bound

    def skip(self) -> None:
        """Count a line that needs no tokens."""
        self._num_unread -= 1

    def add(self, num_tokens: int) -> None:
        """Count tokens that came."""
        self.num_tokens += num_tokens
        self._running_tokens += num_tokens

    def end(self, bound: int, num_tokens: int) -> None:
        """Count a line that left the engine with so many tokens."""
        self._running_bound -= bound
        self._running_tokens -= num_tokens
        self._ended_bound += bound
        self._ended_tokens += num_tokens

    @property
    def left(self) -> float:
        share = self._ended_tokens / self._ended_bound if self._ended_bound else 1.0
        to_come = share * (self._running_bound + self._mean_bound * max(0, self._num_unread))
        return max(0.0, to_come - self._running_tokens)

    def note(self, elapsed_s: float) -> str:
        """Tokens per second since the start, and the time left at that rate."""
        rate = self.num_tokens / elapsed_s if elapsed_s > 0 else 0.0
        return f"{rate:.0f} tokens/s" + (f", {duration(self.left / rate)} left" if rate else "")


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or with days where there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour}:{minute:02}:{second:02}"
