"""Which programs a scheduler's sequences can come to need: known before the first of their steps."""

from __future__ import annotations

from typing import NamedTuple

from jbatch.host.limits import SchedulerView
from jbatch.host.request import Sequence
from jbatch.host.scheduler import Scheduler
from jbatch.sampler import Sampler, with_unions
from jbatch.seam.bucket import Bucket, align, room_of, smallest_bucket

MANY = 64  # sequences


class Reach(NamedTuple):
    """Buckets of steps, and ways of drawing in them."""

    buckets: tuple[Bucket, ...]
    samplers: tuple[Sampler, ...]
    shares_pages: bool = False  # between samples of one prompt


def reach(scheduler: Scheduler) -> Reach:
    """What steps of the waiting sequences can need, where none runs and no others come.

    Limits are taken to stay as they are. Where they change, or requests come later, a step may need more.
    """
    sequences = [sequence for sequence in scheduler.unfinished if not sequence.finished]
    if not sequences:
        return Reach((), ())
    buckets = _Batch(scheduler, sequences).buckets()
    samplers = with_unions(sequence.request.params.sampler for sequence in sequences)
    found = tuple(bucket for bucket in scheduler.config.buckets if bucket in buckets)
    return Reach(found, samplers, any(len(sequence.family) > 1 for sequence in sequences))


class _Batch:
    """Sequences that begin together."""

    def __init__(self, scheduler: Scheduler, sequences: list[Sequence]):
        self._sequences, self._config = sequences, scheduler.config
        self._holdings, self._pool = scheduler.holdings, scheduler.pool
        self._buckets = sorted(self._config.buckets, key=lambda bucket: bucket.num_places)
        self._room = room_of(max(self._buckets, key=lambda bucket: bucket.tokens), self._config.shape)
        self._num_steps = {bucket.steps for bucket in self._buckets}
        limits = scheduler.limits(SchedulerView(0.0, scheduler.num_waiting, 0, self._pool.num_free))
        most = min(limits.max_num_seqs, self._config.shape.num_rows, len(sequences))
        self._num_at_once = 1 if self._config.admission.one_by_one else max(1, most)
        self._budget = min(limits.max_num_batched_tokens, max(bucket.tokens for bucket in self._buckets))

    def buckets(self) -> set[Bucket]:
        """All that its steps can have."""
        found = self._with_prompts()
        if any(sequence.request.max_tokens > 1 for sequence in self._sequences):  # prefill draws the first
            for slots in range(1, self._num_at_once + 1):  # fewer once some have ended
                found |= {self._pick(slots, [], slots, steps) for steps in self._num_steps}
        return found

    def _with_prompts(self) -> set[Bucket]:
        """The steps that take all prompts of a batch at once; else what is not larger than they can fill."""
        known = [sequence.num_known for sequence in self._sequences]
        if self._num_at_once == 1 and max(map(align, known)) <= self._budget and not self._share_pages():
            alone = known + self._not_found(self._sequences)
            return {self._pick(0, [length], self._pool.pages_for(length)) for length in alone}
        if self._fit_together():
            first = self._sequences
            if self._admits_in_order() and all(sequence.request.max_tokens for sequence in first):
                # Of each prompt one sample computes it, and the others draw from its chunk.
                first = list({id(sequence.family): sequence for sequence in first}.values())
            known, draws = [sequence.num_known for sequence in first], len(self._sequences)
            fit = len(known) <= self._room.chunks and draws <= self._room.chunk_draws
            if fit and sum(map(align, known)) <= self._budget:  # what is found now may be gone by then
                updates = sum(map(self._pool.pages_for, known))
                picked = {
                    self._pick(0, left, updates, draws=draws) for left in (known, self._not_found(first))
                }
                return self._up_to(picked) if self._config.admission.wait_full else picked
        # What lost its pages is prefilled again, with its output.
        lengths = sorted([sequence.max_len for sequence in self._sequences])[-self._num_at_once :]
        updates = self._num_at_once + sum(map(self._pool.pages_for, lengths))
        last = self._pick(self._num_at_once, lengths, updates, draws=self._num_at_once)
        return self._up_to({last})

    def _up_to(self, picked: set[Bucket]) -> set[Bucket]:
        """All steps with prompts that are no larger than the largest of these: some may be gone before a
        batch that waits to be full begins."""
        most = max(bucket.num_places for bucket in picked)
        return {bucket for bucket in self._buckets if bucket.tokens and bucket.num_places <= most}

    def _admits_in_order(self) -> bool:
        """Whether samples of one prompt, which come together, are admitted together."""
        return not self._config.policy.ageing and not self._config.policy.rerank_steps

    def _not_found(self, sequences: list[Sequence]) -> list[int]:
        """Of each sequence, the tokens that are not in the cache."""
        page_size = self._pool.page_size
        return [each.num_known - len(self._holdings.find(each)) * page_size for each in sequences]

    def _share_pages(self) -> bool:
        """Whether one may find what another one has computed. Of many, some may: they are not looked at."""
        if len(self._sequences) > MANY:
            return True
        first = [digest for each in self._sequences if (digest := self._holdings.first_digest(each))]
        return len(set(first)) < len(first)

    def _fit_together(self) -> bool:
        """Whether all are admitted at once, and none is preempted."""
        pages = sum(self._pool.pages_for(sequence.max_len) + 1 for sequence in self._sequences)
        return len(self._sequences) == self._num_at_once and pages <= self._pool.num_usable

    def _pick(self, slots: int, lengths: list[int], updates: int, steps: int = 1, draws: int = 1) -> Bucket:
        """The scheduler's choice."""
        return smallest_bucket(
            self._buckets,
            self._config.shape,
            slots=slots if self._config.admission.refill or not lengths else 0,
            tokens=align(min(sum(map(align, lengths)), self._budget)),
            chunks=min(len(lengths), self._room.chunks),
            draws=min(draws, self._room.chunk_draws) if lengths else 0,
            updates=min(updates, self._room.table_updates) if lengths else updates,
            steps=steps,
        )
