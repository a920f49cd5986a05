"""Which sequences the next step computes. Deterministic: no clock, no random numbers, no I/O.

The host runs one step ahead of the device: `schedule` plans with upper bounds (every issued step gives
its sequences a token), `apply` reconciles. A sequence that ends by its length is known to end in advance;
one that meets a stop id is masked by the device at once and known here one step late.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jbatch.errors import RequestError
from jbatch.host.metrics import StepRecord
from jbatch.host.pages import PagePool
from jbatch.host.plan import Bucket, Chunk, Status, StepOutput, StepPlan, TableUpdate, align, chunk_of
from jbatch.host.policy import Admission, Policy
from jbatch.host.request import Request, Sequence
from jbatch.outputs import FinishReason
from jbatch.sampling_params import Sampler


class SchedulerView(NamedTuple):
    """What a limits function may look at."""

    now: float
    num_waiting: int
    num_running: int
    num_free_pages: int


class StepLimits(NamedTuple):
    """The budgets of one step."""

    max_num_batched_tokens: int
    max_num_seqs: int


Limits = Callable[[SchedulerView], StepLimits]


class SchedulerConfig(NamedTuple):
    """Everything that a scheduler needs to know."""

    num_rows: int  # rows of device state
    num_pages: int
    page_size: int
    max_model_len: int
    decode_buckets: tuple[Bucket, ...]  # ascending
    prefill_buckets: tuple[Bucket, ...]  # ascending
    policy: Policy
    admission: Admission


NON_FINITE = "logits are not finite"
DEVICE_ERRORS = {
    Status.NON_FINITE: NON_FINITE + " at position {position}; "
    "a float16 model may overflow: try dtype='bfloat16'",
    Status.NOTHING_LEFT: "no token is left to draw at position {position}: allowed_token_ids, bad_words, "
    "min_tokens and logits_fn rule out all",
}
Progress = tuple[Sequence, list[int]]  # the tokens that one applied step gave one sequence


class Scheduler:
    """Waiting and running sequences, and the pages they own."""

    def __init__(self, config: SchedulerConfig, limits: Limits | None = None):
        self.config = config
        self.pool = PagePool(config.num_pages, config.page_size)
        default = StepLimits(config.prefill_buckets[-1].tokens, config.num_rows)
        self._limits = limits or (lambda view: default)
        self._sequences: dict[int, Sequence] = {}  # all that have not ended, and held ones
        self._waiting: list[tuple[tuple[float, ...], int]] = []  # a heap; ended ones leave when they surface
        self._num_waiting = 0
        self._running: list[Sequence] = []  # in order of admission; held ones too
        self._free_rows = list(range(config.num_rows - 1, -1, -1))
        self._num_sampler = [0] * len(Sampler)  # running sequences by what their tokens take to draw
        self._preempted: list[int] = []  # since the last plan
        self._prefilled_last = False
        self._seq_ids = itertools.count()
        self._step_ids = itertools.count()

    # Requests come and go.

    def check(self, request: Request) -> None:
        """Raise RequestError for a request that could never run to its end."""
        if not request.prompt_token_ids:
            raise RequestError("prompt_token_ids", [], "must hold at least one token", code="empty_prompt")
        room = self.max_seq_len
        total = len(request.prompt_token_ids) + request.max_tokens
        if total > room:
            what = "max_model_len" if room == self.config.max_model_len else "the page pool's tokens"
            raise RequestError(
                "prompt_token_ids + max_tokens",
                total,
                f"{len(request.prompt_token_ids)} prompt tokens + {request.max_tokens} to generate "
                f"must be at most {room} ({what})",
                code="context_length",
            )

    @property
    def max_seq_len(self) -> int:
        """Tokens, prompt and output, that a sequence may have: what the context and the whole pool hold."""
        return min(self.config.max_model_len, self.pool.num_usable * self.config.page_size)

    def add(self, request: Request) -> Sequence:
        """Queue a request. Raises RequestError where it can never run (see `check`)."""
        self.check(request)
        if request.max_tokens < 1 and request.params.prompt_logprobs is None:
            raise RequestError("max_tokens", request.max_tokens, "must be at least 1 without prompt_logprobs")
        sequence = Sequence(
            seq_id=next(self._seq_ids),
            request=request,
            token_ids=list(request.prompt_token_ids),
            num_planned=len(request.prompt_token_ids),
        )
        self._enqueue(sequence)  # first: a user's policy may raise
        self._sequences[sequence.seq_id] = sequence
        return sequence

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
        if not sequence.running:
            self._num_waiting -= 1
            del self._sequences[sequence.seq_id]
        elif not self.config.admission.hold_finished:
            self._release(sequence)
            self._running.remove(sequence)
            del self._sequences[sequence.seq_id]
        elif all(held.finished for held in self._running):
            for held in self._running:
                self._release(held)
                del self._sequences[held.seq_id]
            self._running.clear()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._running) or self._num_waiting > 0

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    @property
    def running(self) -> tuple[Sequence, ...]:
        """In order of admission."""
        return tuple(self._running)

    # One step.

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None where nothing can be computed until a result comes back."""
        view = SchedulerView(now, self._num_waiting, len(self._running), self.pool.num_free)
        limits = self._limits(view)
        # Alternate where prompts join running sequences, so that neither waits long for the other.
        if self._prefilled_last and self.config.admission.refill:
            plan = self._plan_decode(limits) or self._plan_prefill(limits)
        else:
            plan = self._plan_prefill(limits) or self._plan_decode(limits)
        if plan is not None:
            self._prefilled_last = plan.bucket.kind == "prefill"
        return plan

    def apply(self, plan: StepPlan, output: StepOutput) -> tuple[list[Progress], StepRecord]:
        """Take in the result of a step: tokens, ends, and the step's account."""
        progress: list[Progress] = []
        useful = wasted = recomputed = num_tokens = 0
        prefill = plan.bucket.kind == "prefill"
        tokens, counts, statuses = (array.tolist() for array in output[:3])
        for slot, seq_id in enumerate(plan.seq_ids):
            sequence = self._sequences.get(seq_id)
            chunk = plan.chunks[slot] if prefill else None
            size = len(chunk.token_ids) if chunk else 1
            if sequence is None or sequence.finish_reason is not None:
                wasted += size
                continue
            useful += size
            if chunk:
                useful -= chunk.num_recomputed
                recomputed += chunk.num_recomputed
                if chunk.setup is None:
                    continue
            new = tokens[slot][: counts[slot]] if sequence.request.max_tokens else []  # it scored its prompt
            num_tokens += len(new)
            sequence.token_ids += new
            progress.append((sequence, new))
            if statuses[slot]:
                self._end(sequence, statuses[slot])
        computed = plan.bucket.tokens if prefill else plan.bucket.slots
        record = StepRecord(
            step_idx=plan.step_idx,
            kind=plan.bucket.kind,
            slots=plan.bucket.slots,
            slots_used=len(plan.seq_ids),
            computed=computed,
            useful=useful,
            padded=computed - useful - wasted - recomputed,
            wasted=wasted,
            recomputed=recomputed,
            output_tokens=num_tokens,
            pages_used=self.pool.num_used,
            num_running=len(self._running),
            num_waiting=self._num_waiting,
            num_preempted=len(plan.preempted),
        )
        return progress, record

    def _end(self, sequence: Sequence, status: int) -> None:
        if status == Status.STOPPED:
            last = sequence.token_ids[-1]
            named = last in (sequence.request.params.stop_token_ids or ())  # else end-of-sequence
            self.finish(sequence, FinishReason.STOP, stop_reason=last if named else None)
        elif status == Status.OUT_OF_BUDGET:
            self.finish(sequence, FinishReason.LENGTH)
        else:
            error = DEVICE_ERRORS[status].format(position=len(sequence.token_ids))
            self.finish(sequence, FinishReason.ERROR, error=error)

    # Prefill.

    def _plan_prefill(self, limits: StepLimits) -> StepPlan | None:
        largest = self.config.prefill_buckets[-1]
        budget = min(limits.max_num_batched_tokens, largest.tokens)
        if budget <= 0:
            return None
        sequences: list[Sequence] = []
        chunks: list[Chunk] = []
        updates: list[TableUpdate] = []
        for sequence in self._prefilling(limits):
            length = min(sequence.num_known - sequence.num_cached, budget)
            if not self._grow(sequence, sequence.num_cached + length, updates):
                break  # the youngest: it waits for the others' pages
            sequences.append(sequence)
            chunks.append(self._chunk(sequence, length))
            budget -= align(length)
            if budget <= 0 or len(chunks) == largest.slots:
                break
        if not chunks:
            return None
        num_tokens = sum(align(len(chunk.token_ids)) for chunk in chunks)
        bucket = _smallest(self.config.prefill_buckets, len(chunks), num_tokens)
        return self._plan(bucket, sequences, updates, chunks=tuple(chunks))

    def _prefilling(self, limits: StepLimits) -> Iterator[Sequence]:
        """Running sequences with tokens to prefill, oldest first, then those that may join."""
        if not self.config.admission.refill and not self._running:
            for _ in self._admit_waiting(limits):  # the whole batch at once
                pass
        for sequence in tuple(self._running):
            if sequence.running and not sequence.decoding and not sequence.finished:
                yield sequence
        if self.config.admission.refill:
            yield from self._admit_waiting(limits)

    def _chunk(self, sequence: Sequence, length: int) -> Chunk:
        start, end = sequence.num_cached, sequence.num_cached + length
        last = end == sequence.num_known
        chunk = chunk_of(sequence, start, end)
        sequence.num_cached = end
        sequence.num_planned += last
        sequence.decoding = last
        return chunk

    # Decode.

    def _plan_decode(self, limits: StepLimits) -> StepPlan | None:
        hold = self.config.admission.hold_finished
        sequences: list[Sequence] = []
        frozen: list[bool] = []
        updates: list[TableUpdate] = []
        for sequence in tuple(self._running):
            if not sequence.decoding:
                continue
            ended = sequence.num_planned >= sequence.max_len or sequence.finished
            if ended and not hold:
                continue
            if not ended:
                if not self._grow(sequence, sequence.num_cached + 1, updates):
                    self._preempt(sequence)
                    break  # it was the youngest
                sequence.num_cached += 1
                sequence.num_planned += 1
            sequences.append(sequence)
            frozen.append(ended)
        if all(frozen):
            return None
        bucket = _smallest(self.config.decode_buckets, len(sequences), len(sequences))
        return self._plan(bucket, sequences, updates, frozen=tuple(frozen) if hold else ())

    def _plan(
        self,
        bucket: Bucket,
        sequences: list[Sequence],
        updates: list[TableUpdate],
        chunks: tuple[Chunk, ...] = (),
        frozen: tuple[bool, ...] = (),
    ) -> StepPlan:
        preempted, self._preempted = tuple(self._preempted), []
        return StepPlan(
            step_idx=next(self._step_ids),
            bucket=bucket,
            seq_ids=tuple([s.seq_id for s in sequences]),
            rows=tuple([s.row for s in sequences]),
            table_updates=tuple(updates),
            chunks=chunks,
            frozen=frozen,
            sampler=max((s for s in Sampler if self._num_sampler[s]), default=Sampler.GREEDY),
            preempted=preempted,
        )

    # Pages and rows.

    def _grow(self, sequence: Sequence, num_tokens: int, updates: list[TableUpdate]) -> bool:
        """Give a sequence pages for `num_tokens`, taking them from younger ones where none are free."""
        num_owned = len(sequence.pages)
        need = self.pool.pages_for(num_tokens) - num_owned
        if need <= 0:
            return True
        while not self.pool.can_allocate(need):
            youngest = self._running[-1]
            if youngest is sequence:
                return False
            self._preempt(youngest)
        for page_idx, page_id in enumerate(self.pool.allocate(need), start=num_owned):
            sequence.pages.append(page_id)
            updates.append(TableUpdate(sequence.row, page_idx, page_id))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's pages; its tokens will be prefilled again."""
        sequence.num_computed = max(sequence.num_computed, sequence.num_cached)
        sequence.num_preemptions += 1
        self._preempted.append(sequence.seq_id)
        self._running.remove(sequence)
        self._release(sequence)
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (self.config.policy(sequence.request), sequence.seq_id))
        self._num_waiting += 1

    def _next_waiting(self) -> Sequence | None:
        while self._waiting and self._waiting[0][1] not in self._sequences:
            heapq.heappop(self._waiting)  # ended while it waited
        return self._sequences[self._waiting[0][1]] if self._waiting else None

    def _admit_waiting(self, limits: StepLimits) -> Iterator[Sequence]:
        """Admit one after the other, while rows and pages last.

        Running ones have their chunks by now: one that is not through would have taken the whole budget. A
        page is left for each of them to grow into, or who is admitted now would soon be preempted.
        """
        most = 1 if self.config.admission.one_by_one else min(limits.max_num_seqs, self.config.num_rows)
        spare = self.pool.num_free - len(self._running)
        while len(self._running) < most and (sequence := self._next_waiting()) is not None:
            claim = self._claim(sequence)
            if claim > spare or sequence.num_planned > sequence.num_known:  # its tokens are in flight
                return
            spare -= claim
            heapq.heappop(self._waiting)
            self._num_waiting -= 1
            sequence.row = self._free_rows.pop()
            self._num_sampler[sequence.request.params.sampler] += 1
            self._running.append(sequence)
            yield sequence

    def _claim(self, sequence: Sequence) -> int:
        """Pages that a waiting sequence must find free."""
        hold = self.config.admission.hold_finished  # then nothing may be preempted: the worst case
        return self.pool.pages_for(sequence.max_len if hold else sequence.next_len)

    def _release(self, sequence: Sequence) -> None:
        self.pool.free(sequence.pages)
        sequence.pages = []
        self._free_rows.append(sequence.row)
        self._num_sampler[sequence.request.params.sampler] -= 1
        sequence.row = -1
        sequence.num_cached = 0
        sequence.decoding = False


def _smallest(buckets: tuple[Bucket, ...], num_slots: int, num_tokens: int) -> Bucket:
    return next(b for b in buckets if b.slots >= num_slots and b.tokens >= num_tokens)
