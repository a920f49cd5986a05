"""Which waiting sequences join the running ones: one after the other, while rows and pages last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jbatch.host.config import SchedulerConfig
from jbatch.host.family import is_on_the_way, runs_already, shared_start, source_of
from jbatch.host.lifecycle import Lifecycle
from jbatch.host.limits import StepLimits
from jbatch.host.plan import NO_LOOKUP, Lookup
from jbatch.host.policy import may_start
from jbatch.host.request import Sequence
from jbatch.host.reserve import Pool, reserve_of
from jbatch.seam.bucket import PREFIX_PAGES


class NextStep(NamedTuple):
    """The step that is being planned."""

    idx: int
    limits: StepLimits


class Admitter:
    """Asks who is next in line, and lets it run where there is room. Nobody is overtaken: where the first in
    line has to wait, so do all."""

    def __init__(self, config: SchedulerConfig, lifecycle: Lifecycle):
        self._config, self._lifecycle = config, lifecycle
        self._waiting, self._holdings = lifecycle.waiting, lifecycle.holdings
        self._pool = self._holdings.pool
        pool = Pool(self._pool.num_usable, self._pool.page_size)
        self._reserve = reserve_of(config.reserve, pool, config.max_preemption_probability)
        self._lookup = NO_LOOKUP  # since it was last taken

    def waits_for_company(self, limits: StepLimits, now: float) -> bool:
        """Whether nothing starts yet, because a static batch is not full. Nothing runs: all known wait."""
        config, waiting = self._config, self._lifecycle.sequences.values()
        return config.admission.wait_full and not may_start(
            waiting, self._most(limits), now, config.batch_wait_timeout_s
        )

    def admit(self, step: NextStep) -> Iterator[Sequence]:
        """Admit one after the other, while rows and pages last.

        Running ones have their chunks by now: one that is not through would have taken the whole budget. A
        page is left for each of them to grow into, or who is admitted now would soon be preempted.

        Pages that hold the beginning of a sequence are looked up now, and are its own at once: while it
        waited they could have gone.
        """
        running, holdings, most = self._lifecycle.running, self._holdings, self._most(step.limits)
        spare, room = self._pool.num_free - len(running), PREFIX_PAGES
        while len(running) < most and (sequence := self._waiting.first()) is not None:
            if sequence.num_planned > sequence.num_known:  # its tokens are in flight
                return
            start = shared_start(sequence) if source_of(sequence, step.idx) else 0
            if not start and is_on_the_way(sequence):
                return  # so is its prompt
            found = [] if start or runs_already(sequence) else holdings.find(sequence)
            claim = self._claim(sequence, start, found)
            if claim > spare or len(found) > room or not self._reserve.admits(running, sequence):
                return
            spare -= claim
            room -= len(found)
            self._lifecycle.admit(sequence, sequence.num_known - start)
            if found:
                holdings.take_found(sequence, found)
            if not start:
                self._note_lookup(sequence)
            num_running = len(running)
            yield sequence
            spare -= len(running) - num_running  # other samples of its prompt, a page each

    def admit_samples(self, leader: Sequence, most: int, limits: StepLimits) -> None:
        """Admit up to `most` other samples of a prompt, as long as they are the next in line. Each of them,
        and of those that run, is left a page to grow into."""
        running = self._lifecycle.running
        for _ in range(most):
            sample = self._waiting.first()
            if sample is None or sample.family is not leader.family or sample.num_planned > sample.num_prompt:
                return
            if len(running) >= min(self._most(limits), self._pool.num_free):
                return
            if not self._reserve.admits(running, sample):
                return
            self._lifecycle.admit(sample, 0)

    def take_lookup(self) -> Lookup:
        """What was looked up for those that were admitted since the last call."""
        lookup, self._lookup = self._lookup, NO_LOOKUP
        return lookup

    def _most(self, limits: StepLimits) -> int:
        """Sequences that may run at once."""
        config = self._config
        return 1 if config.admission.one_by_one else min(limits.max_num_seqs, config.shape.num_rows)

    def _claim(self, sequence: Sequence, start: int, found: list[int]) -> int:
        """Pages that a waiting sequence must find free, where it would compute from `start` on: 0, or behind
        another sample's pages.

        A padded batch is never preempted, and all of it is in each step: it is counted as if nothing was
        shared.
        """
        if self._config.admission.hold_finished:
            return self._pool.pages_for(sequence.max_len)
        shared = start // self._pool.page_size + len(found) - self._holdings.num_unused(found)
        return self._pool.pages_for(sequence.next_len) - shared

    def _note_lookup(self, sequence: Sequence) -> None:
        """What was found of a sequence that has just been admitted."""
        found = sequence.num_cached
        if sequence.num_found is None:
            sequence.num_found = found
        if self._holdings.reads(sequence):
            wanted, found_before, reachable = self._lookup
            reachable += self._holdings.reachable(sequence)
            self._lookup = Lookup(wanted + sequence.num_known, found_before + found, reachable)
