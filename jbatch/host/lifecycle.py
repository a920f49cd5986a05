"""Sequences wait, run and end: every way from one to the other.

              add              admit               leave
    (request) ---> waiting ------------> running ---------> leaving
                      ^      preempt        |                  |
                      |<--------------------+                  |
                      |        come_back                       |
                      +<---------------------------------------+

`finish` ends one wherever it is. A sequence holds a row and pages while it runs. One that leaves has its last
token planned: it gave up both, and waits for what is in flight.
"""

from __future__ import annotations

from jbatch.host.config import SchedulerConfig
from jbatch.host.holdings import Holdings
from jbatch.host.request import ALONE, NEVER, Sequence
from jbatch.host.served import Served
from jbatch.host.waiting import Waiting
from jbatch.outputs import FinishReason


class Lifecycle:
    """All sequences that have not ended, and what they hold.

    Attributes:
      sequences: all of them, by seq_id; those of a padded batch until the whole batch has ended.
      waiting: the queue.
      running: in order of admission.
      holdings: rows and pages of those that run.
      served: what users got.
    """

    def __init__(self, config: SchedulerConfig):
        self.sequences: dict[int, Sequence] = {}
        self.waiting = Waiting(config.policy)
        self.running: list[Sequence] = []
        self.holdings = Holdings(config.shape, prefix_caching=config.enable_prefix_caching)
        self.served = Served()
        self._hold_finished = config.admission.hold_finished
        self._preempted: list[int] = []  # since they were last taken

    def add(self, sequence: Sequence) -> None:
        """A new sequence begins to wait."""
        self.served.come(sequence.request.user)
        self.waiting.push(sequence)
        self.sequences[sequence.seq_id] = sequence

    def admit(self, sequence: Sequence, num_tokens: int) -> None:
        """Let a waiting sequence run, which has so many tokens to compute. There must be a free row."""
        self.waiting.pop(sequence)
        if self.served.named:
            self.served.charge(sequence.request.user, num_tokens)
        self.holdings.take_row(sequence)
        self.running.append(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's row and pages; its tokens will be prefilled again."""
        sequence.num_computed = max(sequence.num_computed, sequence.num_cached_planned)
        sequence.num_scored = sequence.num_computed
        sequence.num_preemptions += 1
        self._preempted.append(sequence.seq_id)
        self.running.remove(sequence)
        self.holdings.release(sequence)
        self.waiting.push(sequence)

    def take_preempted(self) -> tuple[int, ...]:
        """Those that were preempted since the last call."""
        preempted, self._preempted = tuple(self._preempted), []
        return preempted

    def leave(self, sequence: Sequence) -> None:
        """A sequence's last token is planned. Steps run in order, so the next one may have its row and pages
        for others."""
        sequence.leaving = True
        self.running.remove(sequence)
        self.holdings.release_early(sequence)

    def come_back(self, sequence: Sequence) -> None:
        """One that left got fewer tokens than were planned: it is computed again for the rest."""
        sequence.leaving, sequence.publish_at = False, NEVER
        sequence.num_computed = sequence.num_scored = sequence.num_planned - 1
        self.waiting.push(sequence)

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_reason: str | int | None = None,
        error: str | None = None,
    ) -> None:
        """End a sequence in whatever state it is; what is in flight for it is dropped. Idempotent."""
        if sequence.finished:
            return
        sequence.finish_reason, sequence.stop_reason, sequence.error = reason, stop_reason, error
        self.served.go(sequence.request.user)
        if sequence.leaving:
            del self.sequences[sequence.seq_id]
        elif not sequence.running:
            self.waiting.forget(sequence)
            del self.sequences[sequence.seq_id]
        elif not self._hold_finished:
            self._let_go(sequence)
        elif all(held.finished for held in self.running):
            for held in tuple(self.running):
                self._let_go(held)

    def weights_changed(self) -> None:
        """What pages hold is of no use from now on, as with new weights: none is found again, and none is
        held. Running sequences go on, and what they compute is for themselves alone."""
        for hold_id in tuple(self.holdings.held):
            self.holdings.let_go(hold_id)
        self.holdings.prefixes.forget_all()
        for sequence in self.sequences.values():
            self.holdings.forget(sequence)
        for sequence in self.running:
            sequence.prompt_step = ALONE

    def retract(self) -> None:
        """Take the pages of all that run: their keys and values are of weights that are gone. The known
        tokens, kept, are prefilled again. No step may be in flight."""
        for sequence in tuple(reversed(self.running)):
            if sequence.finished:  # but held
                self._let_go(sequence)
            else:
                self.preempt(sequence)
        self.weights_changed()
        for sequence in self.sequences.values():
            if sequence.num_known == sequence.num_prompt:
                sequence.num_scored = 0  # all of its prompt by the same weights

    def _let_go(self, sequence: Sequence) -> None:
        """One that ran has ended."""
        self.running.remove(sequence)
        self.holdings.release(sequence)
        del self.sequences[sequence.seq_id]
