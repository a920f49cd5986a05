"""Which sequences a step decodes, and how often: the oldest first, with pages more where they are needed."""

from __future__ import annotations

from typing import NamedTuple

from jbatch.host.config import SchedulerConfig
from jbatch.host.growth import grow
from jbatch.host.lifecycle import Lifecycle
from jbatch.host.request import Sequence
from jbatch.host.turns import Turns

MIN_STEP_USE = 0.75  # of the slots of a dispatch of several steps


class Slots(NamedTuple):
    """Who decodes in a step."""

    sequences: tuple[Sequence, ...] = ()
    frozen: tuple[bool, ...] = ()
    num_steps: int = 1
    last: list[Sequence] | tuple[()] = ()  # those of which no more than this is to be planned


class Decode:
    """Plans the slots of steps."""

    def __init__(self, config: SchedulerConfig, lifecycle: Lifecycle):
        self._lifecycle, self._holdings = lifecycle, lifecycle.holdings
        self._pool = self._holdings.pool
        self._hold_finished = config.admission.hold_finished
        self._max_steps = max(bucket.steps for bucket in config.buckets)
        self._turns = Turns(config.shape.num_pages * config.shape.page_size)

    def num_steps(self) -> int:
        """How often to decode in the next dispatch: several times where nobody waits, where there are pages
        for all, and where at most a quarter of the slots would be idle behind an end that is known."""
        most, running = self._max_steps, self._lifecycle.running
        if most == 1 or self._lifecycle.waiting or self._holdings.num_watched:
            return 1
        useful = missing = 0
        for sequence in running:
            if not sequence.decoding:
                return 1
            steps = min(most, sequence.max_len - sequence.num_planned)
            useful += steps
            missing += self._holdings.num_missing(sequence, sequence.num_cached_planned + steps)
        enough = useful >= MIN_STEP_USE * most * len(running)
        return most if enough and self._pool.can_allocate(missing) else 1

    def slots(self, num_steps: int = 1) -> Slots:
        """The sequences that decode, with pages more where they are needed."""
        hold, page_size = self._hold_finished, self._pool.page_size
        sequences: list[Sequence] = []
        frozen: list[bool] = []
        last: list[Sequence] = []
        running = tuple(self._lifecycle.running)
        if self._pool.any_shared and not hold:  # a padded batch found pages for all, as if none was shared
            running = tuple(self._turns.take(running, num_steps))
        for sequence in running:
            if not sequence.decoding:
                continue
            left = sequence.max_len - sequence.num_planned
            ended = left <= 0 or sequence.finish_reason is not None
            if not ended:
                steps = num_steps if num_steps < left else left
                num_cached = sequence.num_cached_planned + steps
                full = num_cached > len(sequence.pages) * page_size or sequence.forked
                if full and not grow(sequence, num_cached, self._lifecycle):
                    self._lifecycle.preempt(sequence)  # it was the youngest
                    if not sequences:  # and alone in its turn
                        return self.slots(num_steps)
                    break
                sequence.num_cached_planned = num_cached
                sequence.num_planned += steps
                if steps == left:
                    last.append(sequence)
            elif not hold:
                continue
            sequences.append(sequence)
            if hold:
                frozen.append(ended)
        if not sequences or (frozen and all(frozen)):
            return Slots()
        return Slots(tuple(sequences), tuple(frozen), num_steps, last)
