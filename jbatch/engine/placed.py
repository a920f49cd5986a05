"""Which replica has which request, how far it is there, and what of it has been handed out."""

from __future__ import annotations

import dataclasses
import heapq

from jbatch.engine.records import Progress
from jbatch.host.request import Key, Request
from jbatch.host.router import EngineLoad


@dataclasses.dataclass(slots=True, eq=False)
class Placed:
    """A request that has not ended: it waits, or a replica has it."""

    serial: int
    request: Request
    key: Key  # what the policy gives it
    replica: int | None = None
    aborted: bool = False
    left: int = 0  # tokens, prompt and expected output, that its replica has not computed
    seen: dict[int, int] = dataclasses.field(default_factory=dict)  # tokens of each sample from its replica
    given: dict[int, int] = dataclasses.field(default_factory=dict)  # of these, those that were handed out

    def new_of(self, progress: Progress) -> Progress | None:
        """What of a sample's new tokens was not handed out before: by a replica that failed."""
        sample_idx, num_new = progress.sample_idx, len(progress.token_ids)
        seen = self.seen.get(sample_idx, 0) + num_new
        self.seen[sample_idx] = seen
        self.left = max(0, self.left - num_new)
        num_fresh = min(num_new, max(0, seen - self.given.get(sample_idx, 0)))
        self.given[sample_idx] = max(seen, self.given.get(sample_idx, 0))
        if num_fresh == num_new:
            return progress
        if not num_fresh and progress.completion is None:
            return None
        return progress._replace(token_ids=progress.token_ids[num_new - num_fresh :])


class Placements:
    """All requests of several replicas. Those that wait are in the order of their policy. Each method that an
    interrupt cuts off may be called again."""

    def __init__(self, num_replicas: int):
        self._by_id: dict[str, Placed] = {}
        self._at: list[dict[str, Placed]] = [{} for _ in range(num_replicas)]
        self._waiting: list[tuple[Key, int, str]] = []  # a heap; with some that wait no more

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, request_id: str) -> Placed | None:
        """The one with this id, if it has not ended."""
        return self._by_id.get(request_id)

    def add(self, placed: Placed) -> None:
        """Let a request wait."""
        # In this order: what is cut off between the two leaves a request that nobody has, and not one that
        # nobody gives to a replica.
        heapq.heappush(self._waiting, (placed.key, placed.serial, placed.request.request_id))
        self._by_id[placed.request.request_id] = placed

    def first(self) -> Placed | None:
        """Who is next of those that wait."""
        while self._waiting:
            _, serial, request_id = self._waiting[0]
            placed = self._by_id.get(request_id)
            if placed is not None and placed.serial == serial and placed.replica is None:
                return placed
            heapq.heappop(self._waiting)
        return None

    def place(self, placed: Placed, replica: int) -> None:
        """Note that a replica has it."""
        request = placed.request
        placed.left = len(request.prompt_token_ids) + request.params.n * request.expected_len
        placed.seen.clear()
        self._at[replica][request.request_id] = placed
        placed.replica = replica

    def let_wait(self, placed: Placed, replica: int) -> None:
        """Let one wait again that a replica should have."""
        placed.replica = None
        self.add(placed)
        self._at[replica].pop(placed.request.request_id, None)

    def drop(self, request_id: str) -> None:
        """Forget one that ended."""
        self._by_id.pop(request_id, None)
        for at in self._at:
            at.pop(request_id, None)

    @property
    def num_waiting(self) -> int:
        """Requests that no replica has."""
        return len(self._by_id) - sum(map(len, self._at))

    def num_at(self, replica: int) -> int:
        """Requests that a replica has."""
        return len(self._at[replica])

    def at(self, replica: int) -> tuple[Placed, ...]:
        """Those that a replica has."""
        return tuple(self._at[replica].values())

    def num_samples(self, replica: int) -> int:
        """Of all requests that a replica has."""
        return sum(placed.request.params.n for placed in self._at[replica].values())

    def load(self, replica: int, tokens_per_s: float) -> EngineLoad:
        """For a router."""
        at = self._at[replica].values()
        return EngineLoad(len(at), sum(placed.left for placed in at), tokens_per_s)

    def all(self) -> tuple[Placed, ...]:
        """Every request that has not ended."""
        return tuple(self._by_id.values())
