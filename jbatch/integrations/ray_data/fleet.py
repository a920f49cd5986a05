"""Replicas that share the lines of some jobs: each is kept busy, and what one loses others answer."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from jbatch.errors import ConfigError, JobError
from jbatch.host.metrics import Summary
from jbatch.integrations.ray_data.replica import Answered, Exchange, Loaded, Refused, Routed

WINDOW = 4  # times the sequences that a replica runs at once: enough that none waits for the next line
MAX_BYTES_AT_ONCE = 2**22
MAX_LOSSES = 3  # of a replica, in a row, without a result
POLL_S = 0.2  # between looks at whether to stop


class ReplicaLost(Exception):
    """A process, or its device, is gone."""


class Handle(Protocol):
    """A replica, from outside. What is asked of it comes later, see Cluster."""

    def load(self) -> Any: ...
    def exchange(self, lines: Sequence[Routed]) -> Any: ...
    def kill(self) -> None: ...


class Cluster(Protocol):
    """Where replicas run."""

    def start(self) -> Handle:
        """A new replica, which knows nothing yet."""
        ...

    def wait(self, refs: list[Any], timeout_s: float) -> list[Any]:
        """Those of what was asked for that are there, at the latest after `timeout_s`."""
        ...

    def get(self, ref: Any) -> Loaded | Exchange | Refused:
        """What was asked for. Raises ReplicaLost."""
        ...


@dataclasses.dataclass
class _Member:
    """A replica, and what it has."""

    handle: Handle
    ref: Any  # what it was asked for last
    num_rows: int = 0  # once it is loaded
    pending: dict[tuple[int, int], Routed] = dataclasses.field(default_factory=dict)  # by job and line
    summary: Summary = dataclasses.field(default_factory=Summary)
    compilations: int = 0
    losses: int = 0  # in a row, of this one and those in whose place it is


class Fleet:
    """Answers lines, each once, by `num_replicas` replicas.

    Args:
      num_left: lines that will come, about: so that one replica does not take what two could do.
      say: told of replicas that are lost.
    """

    def __init__(self, cluster: Cluster, num_replicas: int, num_left: int, say: Callable[[str], None]):
        self._cluster, self._say = cluster, say
        self._num_replicas, self._num_left = num_replicas, num_left
        self._again: deque[Routed] = deque()  # lines of replicas that were lost
        self._past = list[_Member]()  # replicas that were lost
        self._members = list[_Member]()

    def run(
        self,
        lines: Iterator[Routed],
        stop: Callable[[], bool],
        on_loaded: Callable[[Loaded], None],
        on_answers: Callable[[list[Answered]], None],
    ) -> bool:
        """Answer all lines; False where `stop` said to end before. Then what was running is dropped.

        Raises:
          JobError: where a replica is lost again and again, or cannot go on.
          ConfigError: where one cannot begin; and whatever the two functions raise.
        """
        for _ in range(self._num_replicas):
            self._start(losses=0)
        try:
            while True:
                if stop():
                    return False
                busy = {id(member.ref): member for member in self._members if member.ref is not None}
                if not busy:
                    return True
                refs = [member.ref for member in busy.values()]
                ready = self._cluster.wait(refs, POLL_S)
                for member in [busy[id(ref)] for ref in ready]:
                    self._take(member, on_loaded, on_answers)
                for member in self._members:
                    self._feed(member, lines)
                on_answers([])
        finally:
            for member in self._members:
                member.handle.kill()

    @property
    def summary(self) -> Summary:
        """Of all engines together, as far as they have said."""
        return _sum([member.summary for member in [*self._past, *self._members]])

    @property
    def compilations(self) -> int:
        """Since the models were loaded."""
        return sum(member.compilations for member in [*self._past, *self._members])

    def _start(self, losses: int) -> None:
        handle = self._cluster.start()
        self._members.append(_Member(handle, handle.load(), losses=losses))

    def _take(
        self,
        member: _Member,
        on_loaded: Callable[[Loaded], None],
        on_answers: Callable[[list[Answered]], None],
    ) -> None:
        """Take in what a replica was asked for."""
        ref, member.ref = member.ref, None
        try:
            given = self._cluster.get(ref)
        except ReplicaLost as error:
            self._replace(member, str(error))
            return
        if isinstance(given, Refused):
            if not member.num_rows:
                raise ConfigError("replicas", self._num_replicas, given.reason)
            raise JobError(given.reason)
        if isinstance(given, Loaded):
            on_loaded(given)
            member.num_rows = given.num_rows
            return
        member.losses = 0
        member.summary, member.compilations = given.summary, given.compilations
        for answered in given.results:
            del member.pending[answered.job_idx, answered.result.line_no]
        on_answers(given.results)

    def _replace(self, member: _Member, reason: str) -> None:
        """Start a replica in the place of one that is lost."""
        self._members.remove(member)
        self._past.append(member)
        member.handle.kill()
        if member.losses + 1 == MAX_LOSSES:
            raise JobError(f"a replica was lost {MAX_LOSSES} times before it answered a line: {reason}")
        self._say(f"a replica was lost ({reason}): {len(member.pending)} lines run again")
        self._again.extend(member.pending.values())
        member.pending.clear()
        self._start(member.losses + 1)

    def _feed(self, member: _Member, lines: Iterator[Routed]) -> None:
        """Ask a replica that has answered for more, with as many lines as it has room for."""
        if member.ref is not None or not member.num_rows:
            return
        share = -(-(self._num_left + len(self._again)) // self._num_replicas)
        room = min(WINDOW * member.num_rows - len(member.pending), max(1, share))
        taken, num_bytes = list[Routed](), 0
        while len(taken) < room and num_bytes < MAX_BYTES_AT_ONCE:
            routed = self._again.popleft() if self._again else next(lines, None)
            if routed is None:
                self._num_left = 0
                break
            taken.append(routed)
            num_bytes += len(routed.line.raw)
        self._num_left = max(0, self._num_left - len(taken))
        member.pending |= {(routed.job_idx, routed.line.line_no): routed for routed in taken}
        if member.pending:
            member.ref = member.handle.exchange(taken)


def _sum(summaries: Sequence[Summary]) -> Summary:
    """All totals together; of the pages, the most that one had."""
    totals = {
        field.name: (max if field.name == "peak_pages_used" else sum)(
            getattr(summary, field.name) for summary in summaries
        )
        for field in dataclasses.fields(Summary)
    }
    return Summary(**totals)
