"""Measure while the machine has its usual speed: others share it, and slow it down for seconds at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

SLOW = 1.25  # times the fastest probe; a core that is shared takes half as long again
FIRST = 10  # probes, to find how fast the machine is
TRIES = 4
PATIENCE_S = 5.0  # for a slow spell to end, before each try
NAP_S = 0.2


class Calm:
    """Does what is measured, and does it again where the machine was slow meanwhile.

    A probe says so, before and after: seconds of a short and fixed piece of work. What is measured is never
    looked at, so nothing is chosen by its result.

    Attributes:
      num_again: what was done once more.
      num_slow: what was kept, since the machine was slow at every try.
    """

    def __init__(self, probe: Callable[[], float], sleep: Callable[[float], None] = time.sleep):
        self._probe, self._sleep = probe, sleep
        self._fastest = min(probe() for _ in range(FIRST))
        self.num_again = self.num_slow = 0

    def run(self, do: Callable[[], Result]) -> Result:
        """The result of `do`, from a calm machine where there was one."""
        for tried in range(TRIES):
            self._wait()
            result = do()
            if self._is_calm():
                return result
            self.num_again += tried + 1 < TRIES
        self.num_slow += 1
        return result

    def _is_calm(self) -> bool:
        seconds = self._probe()
        self._fastest = min(self._fastest, seconds)
        return seconds <= SLOW * self._fastest

    def _wait(self) -> None:
        for _ in range(round(PATIENCE_S / NAP_S)):
            if self._is_calm():
                return
            self._sleep(NAP_S)

    def __str__(self) -> str:
        again, slow = self.num_again, self.num_slow
        return f"the machine was slow meanwhile: {again} runs were repeated, {slow} were slow each time"
