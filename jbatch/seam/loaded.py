"""Which weights a device computes with, and since when."""

from __future__ import annotations

import threading
from typing import NamedTuple

from jbatch.outputs import Label


class Version(NamedTuple):
    """One of the weights that a runner had."""

    num_updates: int = 0  # that came before: no two have the same, whatever labels are repeated
    label: Label = 0  # what the caller calls them


class LoadedWeights:
    """The version of a runner's weights.

    Attributes:
      lock: held from the plan of a step until its launch, and while weights change, so that no step computes
        with weights that its plan does not know of.
      version: of those that the next step computes with.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.version = Version()

    def count(self, label: Label | None) -> None:
        """They are others now. Without a label they are called by their number."""
        num_updates = self.version.num_updates + 1
        self.version = Version(num_updates, num_updates if label is None else label)
