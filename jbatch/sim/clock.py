"""A clock that stands still until it is moved on: time in a simulation."""

from __future__ import annotations


class VirtualClock:
    """Seconds since a simulation's begin. In the place of `time.monotonic`; `advance` is its `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def advance_to(self, moment: float) -> None:
        """Wait for a moment; one that has passed is not waited for."""
        self.now = max(self.now, moment)
