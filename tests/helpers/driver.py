"""Drives a scheduler on a fake device, and checks it after every step."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections import deque
from collections.abc import Callable

import numpy as np

from jbatch.errors import JBatchError
from jbatch.host.config import SchedulerConfig
from jbatch.host.limits import SchedulerView, StepLimits
from jbatch.host.metrics import StepRecord
from jbatch.host.pack import pack
from jbatch.host.plan import StepPlan
from jbatch.host.request import Request
from jbatch.host.request import Sequence as Running
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepInput
from jbatch.seam.step_output import StepOutput
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers.invariants import (
    PrefixWatch,
    check_invariants,
    check_plan,
    check_record,
    check_running,
    dead_pages,
)
from tests.helpers.schedules import BATCH_WAIT, VOCAB_SIZE

MAX_STEPS = 20_000  # of one schedule: more is a hang
HOST_STOP = "stop string"
FINDS = "found", "reachable", "looked_up"


class AgeingRunner(FakeRunner):
    """One that knows of what weights each position of its cache is, and never reads one of others."""

    num_updates = 0

    def __init__(self, shape: StateShape, vocab_size: int):
        super().__init__(shape, vocab_size)
        self._written = np.full_like(self.cache, -1)  # the number of updates before

    def submit(self, step: StepInput) -> StepOutput:
        if step.page_copies is not None:
            sources, targets = step.page_copies.T
            self._written[targets] = self._written[sources]
        return super().submit(step)

    def _write(self, row: int, position: int, token_id: int) -> None:
        super()._write(row, position, token_id)
        page_size = self.shape.page_size
        self._written[self._tables[row, position // page_size], position % page_size] = self.num_updates

    def _context(self, row: int, length: int) -> list[int]:
        pages = self._tables[row, : -(-length // self.shape.page_size)]
        assert (self._written[pages].reshape(-1)[:length] == self.num_updates).all(), "of older weights"
        return super()._context(row, length)


class Driver:
    """A scheduler, a fake device and what is in flight between them, `depth` steps ahead.

    `stops(sequence)` tells whether a stop string ends a sequence that just got a token.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        depth: int = 1,
        limits: Callable[[SchedulerView], StepLimits] | None = None,
        stops: Callable[[Running], bool] = lambda sequence: False,
    ):
        self.config, self.depth, self.stops = config, depth, stops
        largest = max(bucket.tokens for bucket in config.buckets)
        self.limits = StepLimits(largest, config.shape.num_rows)
        self._choose_limits = limits
        self.scheduler = Scheduler(config, self._next_limits if limits else None)
        self.runner = AgeingRunner(config.shape, VOCAB_SIZE)
        self.num_retracted = 0
        self.in_flight: deque = deque()
        self.sequences: list[Running] = []
        self.ends: dict[int, tuple[FinishReason, str | int | None, int]] = {}  # reason, stop_reason, length
        self.records: list[StepRecord] = []
        self.smallest_budget = self.limits.max_num_batched_tokens
        self.num_shared = 0  # positions that sequences have from others
        self._covered: dict[int, int] = {}  # by seq_id: positions that have been counted
        self._padded_batch: tuple[int, ...] = ()
        self.now = 0.0  # a step takes a second
        self.num_held = 0  # times that pages were kept
        self.num_saved = 0  # positions that were found, and never computed
        self._begun: set[tuple[int, int]] = set()  # sequences, and how often they had been preempted
        self._prefixes = PrefixWatch()

    def _next_limits(self, view: SchedulerView) -> StepLimits:
        assert view.num_free_pages == self.scheduler.pool.num_free and view.num_running + view.num_waiting
        self.limits = self._choose_limits(view)
        if self.limits.max_num_batched_tokens:
            self.smallest_budget = min(self.smallest_budget, self.limits.max_num_batched_tokens)
        return self.limits

    def submit(self, asked: Request, n: int = 1) -> Running:
        """Queue `n` samples of a request; the first of them."""
        if self.config.admission.wait_full:  # then arrivals are times
            asked = dataclasses.replace(asked, arrival=self.now - asked.arrival)
        family: list[Running] = []
        for idx in range(n):
            self.scheduler.add(dataclasses.replace(asked, sample_idx=idx), family=family)
        self.sequences += family
        return family[0]

    def end(self, sequence: Running, reason: FinishReason, stop_reason: str | None = None) -> None:
        """Abort or stop a sequence in whatever state it is."""
        self.scheduler.finish(sequence, reason, stop_reason)
        self._note_end(sequence)
        check_invariants(self.scheduler)

    def update(self) -> None:
        """Other weights, once what is in flight has ended."""
        while self.in_flight:
            self._apply(*self.in_flight.popleft())
        self.num_retracted += len(self.scheduler.running)
        self.scheduler.retract()
        self.runner.num_updates += 1
        self._padded_batch = ()
        check_invariants(self.scheduler)
        assert not self.scheduler.running and self.scheduler.pool.num_used == 0

    def hold(self, rng: random.Random) -> None:
        """While idle, keep the pages of some sequence's first tokens, if that may be; or let some go."""
        held = self.scheduler.holdings.held
        if held and rng.random() < 0.03:
            self.scheduler.holdings.let_go(rng.choice(list(held)))
        elif self.sequences and not self.scheduler.has_unfinished:
            tokens = rng.choice(self.sequences).token_ids
            with contextlib.suppress(JBatchError):
                self.scheduler.hold(self.num_held, tokens[: rng.randint(0, len(tokens))], None)
                self.num_held += bool(held[self.num_held])
        check_invariants(self.scheduler)

    def _note_end(self, sequence: Running) -> None:
        end = (sequence.finish_reason, sequence.stop_reason, sequence.num_known)
        assert self.ends.setdefault(sequence.seq_id, end) == end, "it ended twice, or grew after its end"

    def step(self) -> StepPlan | None:
        """Schedule and submit, then collect and apply what is `depth` steps old; checks all invariants."""
        self.now += 1.0
        before, waiting = self.scheduler.running, self._waiting()
        plan = self.scheduler.schedule(self.now) if self.scheduler.has_unfinished else None
        fills = self.config.admission.wait_full and not before and self._fills(waiting)
        assert not fills or (plan is None and not self.scheduler.running), "a batch started too early"
        check_running(self.scheduler, before, self.limits)
        if plan is not None:
            check_plan(self.scheduler, plan, self.limits)
            self._check_padded(plan)
            self._note_found(plan)
            self._count_shared(plan)
            handle = self.runner.submit(pack(plan, self.config.shape))
            self.in_flight.append((plan, handle))
        if self.in_flight and (plan is None or len(self.in_flight) > self.depth):
            self._apply(*self.in_flight.popleft())
        elif plan is None:
            assert fills or not self.scheduler.has_unfinished, "work waits, and nothing is under way"
        check_invariants(self.scheduler)
        self._covered |= {s.seq_id: s.num_cached_planned for s in self.scheduler.running if s.decoding}
        self.runner.cache[dead_pages(self.scheduler)] = -1  # the sum of what is read would be another
        self._prefixes.check(self.scheduler, self.sequences, self.runner.cache)
        return plan

    def _note_found(self, plan: StepPlan) -> None:
        page_size = self.config.shape.page_size
        for chunk in plan.chunks:
            sequence = self.scheduler.lifecycle.sequences[chunk.seq_id]
            behind_prompt = len(sequence.family) > 1 and chunk.start in range(
                sequence.num_prompt - 1, sequence.num_prompt + 1
            )
            assert chunk.start % page_size == 0 or behind_prompt, "a chunk begins within a page"
            assert chunk.end % page_size == 0 or chunk.end == sequence.num_known, "it ends within one"
            if (chunk.seq_id, chunk.attempt) not in self._begun:
                self._begun.add((chunk.seq_id, chunk.attempt))
                self.num_saved += max(0, chunk.start - sequence.num_computed)

    def _waiting(self) -> list[Running]:
        return [sequence for sequence in self.sequences if not sequence.running and not sequence.finished]

    def _fills(self, waiting: list[Running]) -> bool:
        """Whether a batch of these is to wait: it is not full, none has waited too long, none has begun."""
        begun = any(sequence.num_preemptions for sequence in waiting)
        size = min(self.limits.max_num_seqs, self.config.shape.num_rows)
        late = any(self.now - sequence.request.arrival >= BATCH_WAIT for sequence in waiting)
        return 0 < len(waiting) < size and not begun and not late

    def _apply(self, plan: StepPlan, handle) -> None:
        progress, record = self.scheduler.apply(plan, self.runner.collect(handle)[0])
        check_record(record, progress)
        self.records.append(record)
        assert len(self.records) < MAX_STEPS, "it does not end"
        for sequence, _ in progress:
            if sequence.finished:
                self._note_end(sequence)
            elif self.stops(sequence):
                self.end(sequence, FinishReason.STOP, HOST_STOP)

    def _check_padded(self, plan: StepPlan) -> None:
        """A padded batch decodes the same rows from its first step to its last."""
        if self.config.admission.hold_finished:
            if plan.seq_ids and self._padded_batch:
                assert plan.seq_ids == self._padded_batch
            self._padded_batch = plan.seq_ids

    def _count_shared(self, plan: StepPlan) -> None:
        """Positions that count as useful where each sequence is alone, and that it has from others."""
        for chunk in plan.chunks:
            covered = self._covered.get(chunk.seq_id, 0)
            self.num_shared += max(0, chunk.start - covered)
            useful = len(chunk.token_ids) - chunk.num_recomputed
            self.num_shared += max(0, chunk.end - max(chunk.start, covered)) - useful
            self._covered[chunk.seq_id] = max(covered, chunk.end)
            for draw in chunk.draws[1:]:
                covered = self._covered.get(draw.seq_id, 0)
                self.num_shared += chunk.end - covered
                self._covered[draw.seq_id] = chunk.end

    def drain(self) -> None:
        """Step until idle."""
        while self.scheduler.has_unfinished or self.in_flight:
            self.step()

    def check_end(self) -> None:
        """Once drained: every sequence ended once with its tokens, in a bounded number of steps."""
        assert self.ends.keys() == {sequence.seq_id for sequence in self.sequences}
        most_steps = positions = 0
        untouched = True
        for sequence in self.sequences:
            self._note_end(sequence)
            untouched &= check_tokens(sequence)
            positions += sequence.num_known
            positions -= sequence.request.max_tokens > 0  # what is drawn last is never cached
            whole_pages = self.smallest_budget - self.smallest_budget % self.config.shape.page_size
            chunks = -(-sequence.max_len // (whole_pages or self.smallest_budget))
            given = len(sequence.output_token_ids) + self.depth  # and what is in flight at its end
            most_steps += chunks * (1 + sequence.num_preemptions) + given
        assert len(self.records) <= most_steps, "steps without progress"
        useful = sum(record.useful for record in self.records)
        positions -= self.num_shared
        assert useful == positions if untouched else useful <= positions + len(self.sequences)
        found, reachable, looked_up = (
            sum(getattr(record, name) for record in self.records) for name in FINDS
        )
        assert self.num_saved <= found <= reachable <= looked_up
        preempted = sum(record.num_preempted for record in self.records) + len(
            self.scheduler.lifecycle._preempted
        )
        assert preempted == sum(sequence.num_preemptions for sequence in self.sequences)
        assert self.config.reserve != "no-evict" or preempted <= self.num_retracted


def check_tokens(sequence: Running) -> bool:
    """It has the tokens that the definition gives and the right reason. False where the host ended it."""
    asked, got = sequence.request, sequence.output_token_ids
    expected = continuation(
        asked.prompt_token_ids,
        asked.max_tokens,
        VOCAB_SIZE,
        asked.stop_ids,
        asked.params.min_tokens,
        asked.sample_idx,
    )
    if sequence.finish_reason == FinishReason.ABORT or sequence.stop_reason == HOST_STOP:
        assert got == expected[: len(got)]
        return False
    assert got == expected
    if expected and expected[-1] in asked.stop_ids:
        assert (sequence.finish_reason, sequence.stop_reason) == (FinishReason.STOP, expected[-1])
    else:
        assert (sequence.finish_reason, sequence.stop_reason) == (FinishReason.LENGTH, None)
    return True
