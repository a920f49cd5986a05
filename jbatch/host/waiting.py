"""The waiting queue: sequences by the keys that a policy gives them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from jbatch.errors import UserFunctionError
from jbatch.host.limits import SchedulerView
from jbatch.host.policy import Policy, new_key_of
from jbatch.host.request import Key, Sequence

PER_STEP = 64  # sequences that are ranked anew, on average, where many wait
TRIES = 16  # of a first one whose key has grown since
OVERTAKING = 8192  # tokens that may overtake a first comer before ageing begins


class _Entry(NamedTuple):
    """A place in the queue. One whose serial is not its sequence's last is stale."""

    key: Key
    seq_id: int
    serial: int


class Waiting:
    """Sequences without a row, the smallest key first; ties by order of arrival."""

    def __init__(self, policy: Policy, overtaking: int = OVERTAKING):
        self._policy = policy
        self._heap: list[_Entry] = []
        self._waiting: dict[int, tuple[int, Sequence]] = {}  # by seq_id: the serial of its entry
        self._serials = itertools.count()
        self._num_steps = 0  # since keys were asked for
        self._view = SchedulerView(0.0, 0, 0, 0)  # of the present step
        self._ageing = Ageing(overtaking) if policy.ageing else None

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        """All of them, in no order."""
        return (sequence for _, sequence in self._waiting.values())

    def push(self, sequence: Sequence) -> None:
        """Queue a sequence, by its key."""
        serial = next(self._serials)
        self._waiting[sequence.seq_id] = serial, sequence
        heapq.heappush(self._heap, _Entry(sequence.key, sequence.seq_id, serial))
        if self._ageing is not None:
            self._ageing.push(sequence)

    def first(self) -> Sequence | None:
        """Who is next in line."""
        if self._ageing is not None and (oldest := self._ageing.due(self._waits)) is not None:
            return oldest
        for _ in range(TRIES if self._policy.rerank_steps else 1):
            entry = self._surface()
            if entry is None:
                return None
            sequence = self._waiting[entry.seq_id][1]
            if not self._policy.rerank_steps or (key := self._fresh_key(sequence)) <= entry.key:
                break
            sequence.key = key
            heapq.heapreplace(self._heap, entry._replace(key=key))
        return sequence

    def pop(self, sequence: Sequence) -> None:
        """Take out the one that `first` gave."""
        del self._waiting[sequence.seq_id]
        self._surface()
        if self._ageing is not None:
            self._ageing.admitted(sequence, self._waits)

    def forget(self, sequence: Sequence) -> None:
        """Take out one that has ended."""
        del self._waiting[sequence.seq_id]
        if len(self._heap) > 2 * len(self._waiting) + PER_STEP:  # mostly of those that are gone
            self._heap = [entry for entry in self._heap if self._holds(entry)]
            heapq.heapify(self._heap)

    def some(self, most: int) -> Iterator[Sequence]:
        """Up to `most` that wait. Not quite the first ones: the heap's order."""
        for entry in itertools.islice(self._heap, max(0, most)):
            if self._holds(entry):
                yield self._waiting[entry.seq_id][1]

    def rerank(self, view: SchedulerView, running: Collection[Sequence] = ()) -> None:
        """Begin a step: ask for keys again, where they change and enough steps have passed: more, the more
        wait, so that a step has few of them on average. Those of `running` are asked for, too: by them it is
        chosen who gives up pages, in the middle of a plan, where nothing may fail.

        Raises UserFunctionError where the policy fails; nothing has been changed then.
        """
        self._view = view
        self._num_steps += 1
        every = self._policy.rerank_steps
        if not every or self._num_steps < max(every, len(self) // PER_STEP):
            return
        entries = [
            _Entry(new_key_of(self._policy, sequence.request, view), sequence.seq_id, serial)
            for serial, sequence in self._waiting.values()
        ]
        keys = [new_key_of(self._policy, sequence.request, view) for sequence in running]
        for entry in entries:
            self._waiting[entry.seq_id][1].key = entry.key
        for sequence, key in zip(running, keys, strict=True):
            sequence.key = key
        heapq.heapify(entries)
        self._heap, self._num_steps = entries, 0

    def _surface(self) -> _Entry | None:
        """The first entry, once stale ones are gone."""
        while self._heap and not self._holds(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def _holds(self, entry: _Entry) -> bool:
        known = self._waiting.get(entry.seq_id)
        return known is not None and known[0] == entry.serial

    def _waits(self, seq_id: int) -> Sequence | None:
        known = self._waiting.get(seq_id)
        return None if known is None else known[1]

    def _fresh_key(self, sequence: Sequence) -> Key:
        """The key that a sequence would have now. In the middle of a plan nothing may be raised: a function
        that fails is named when all are ranked anew."""
        try:
            return new_key_of(self._policy, sequence.request, self._view)
        except UserFunctionError:
            return sequence.key


class Ageing:
    """Lets the one that came first go before its turn, so that no one waits for ever.

    Work is counted, in tokens that are expected. Those that a policy puts before the first comer get no more
    of it than the first comers themselves, but for `overtaking` tokens and one request. So at most twice the
    work that would go before a request in order of arrival, and so much more, goes before it.
    """

    def __init__(self, overtaking: int) -> None:
        self._overtaking = overtaking
        self._by_arrival: list[tuple[float, int]] = []
        self._ahead = 0  # work of those that were put before the first comer, less that of first comers

    def push(self, sequence: Sequence) -> None:
        """One begins to wait."""
        heapq.heappush(self._by_arrival, (sequence.request.arrival, sequence.seq_id))

    def due(self, waits: Callable[[int], Sequence | None]) -> Sequence | None:
        """The first comer, where it is its turn."""
        return self._first_comer(waits) if self._ahead > self._overtaking else None

    def admitted(self, sequence: Sequence, waits: Callable[[int], Sequence | None]) -> None:
        """One of them, which waits no longer, is admitted."""
        first = self._first_comer(waits)
        work = max(1, sequence.request.expected_len - len(sequence.output_token_ids))
        came = sequence.request.arrival, sequence.seq_id
        if first is not None and (first.request.arrival, first.seq_id) < came:
            self._ahead += work
        else:
            self._ahead = max(0, self._ahead - work)

    def _first_comer(self, waits: Callable[[int], Sequence | None]) -> Sequence | None:
        while self._by_arrival:
            sequence = waits(self._by_arrival[0][1])
            if sequence is not None:
                return sequence
            heapq.heappop(self._by_arrival)
        return None
