"""The waiting queue: sequences by the keys that a policy gave them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from jbatch.host.request import Key, Sequence

Find = Callable[[int], Sequence | None]  # the sequence of a seq_id, while it has not ended


class Waiting:
    """Sequences without a row, the smallest key first; ties by order of arrival.

    Attributes:
      heap: with ended ones among them, which leave when they surface.
    """

    def __init__(self, find: Find):
        self._find = find
        self.heap: list[tuple[Key, int]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self.heap, (sequence.key, sequence.seq_id))
        self._count += 1

    def first(self) -> Sequence | None:
        """Who is next in line."""
        while self.heap:
            sequence = self._find(self.heap[0][1])
            if sequence is not None:
                return sequence
            heapq.heappop(self.heap)  # it ended while it waited
        return None

    def pop(self) -> None:
        """Take out the one that `first` gave."""
        heapq.heappop(self.heap)
        self._count -= 1

    def forget_one(self) -> None:
        """One that waits has ended: `find` gives None for it from now on."""
        self._count -= 1

    def some(self, most: int) -> Iterator[Sequence]:
        """Up to `most` that wait. Not quite the first ones: the heap's order."""
        for _, seq_id in self.heap[: max(0, most)]:
            if (sequence := self._find(seq_id)) is not None:
                yield sequence
