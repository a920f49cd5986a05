"""Which sequences the next step computes. Deterministic: no clock, no random numbers, no I/O.

The host runs one step ahead of the device: `schedule` plans with upper bounds (every issued step gives
its sequences a token), `apply` reconciles. A sequence that ends by its length is known to end in advance,
and leaves its row to others as soon as its last token is planned; one that meets a stop id is masked by the
device at once and known here one step late.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import NamedTuple

from jbatch.config import WHOLE_PAGE, AdmissionName, EngineConfig, check_range
from jbatch.errors import ConfigError, JBatchError, RequestError
from jbatch.host.family import (
    draws_at_the_end_of_its_prompt,
    is_on_the_way,
    runs_already,
    shared_start,
    source_of,
)
from jbatch.host.holdings import Holdings
from jbatch.host.landing import Landing, Progress
from jbatch.host.limits import Limits, SchedulerView, StepLimits, choose, fill
from jbatch.host.metrics import StepRecord
from jbatch.host.plan import NO_LOOKUP, Chunk, Lookup, StepPlan, Table, chunk_of, first_draw
from jbatch.host.policy import Admission, Policy, key_of, may_start
from jbatch.host.request import ALONE, NEVER, NOT_YET, Key, Request, Sequence
from jbatch.host.reserve import Pool, reserve_of
from jbatch.host.served import Served
from jbatch.host.turns import Turns
from jbatch.host.waiting import Waiting
from jbatch.outputs import FinishReason
from jbatch.seam.bucket import PREFIX_PAGES, Bucket, align, room_of, smallest_bucket
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import StepOutput

MIN_STEP_USE = 0.75  # of the slots of a dispatch of several steps


class SchedulerConfig(NamedTuple):
    """Everything that a scheduler needs to know."""

    shape: StateShape
    max_model_len: int
    buckets: tuple[Bucket, ...]
    policy: Policy
    admission: Admission
    batch_wait_timeout_s: float = EngineConfig.batch_wait_timeout_s  # where admission waits for full batches
    enable_prefix_caching: bool = EngineConfig.enable_prefix_caching
    reserve: AdmissionName = EngineConfig.admission
    max_preemption_probability: float = EngineConfig.max_preemption_probability


class _Slots(NamedTuple):
    """Who decodes in a step."""

    sequences: tuple[Sequence, ...] = ()
    frozen: tuple[bool, ...] = ()
    num_steps: int = 1
    last: list[Sequence] | tuple[()] = ()  # those of which no more than this is to be planned


class Scheduler:
    """Waiting and running sequences, and what they hold."""

    def __init__(self, config: SchedulerConfig, limits: Limits | None = None):
        self.config = config
        self.holdings = Holdings(config.shape, prefix_caching=config.enable_prefix_caching)
        self.pool = self.holdings.pool
        self._buckets = sorted(config.buckets, key=lambda bucket: bucket.num_places)
        largest = max(config.buckets, key=lambda bucket: bucket.tokens)
        self._room = room_of(largest, config.shape)
        self._token_sizes = sorted({bucket.tokens for bucket in config.buckets if bucket.tokens})
        self._least_budget = min(config.shape.page_size, self.max_seq_len)
        check_range("token_buckets", largest.tokens, self._least_budget, sys.maxsize, WHOLE_PAGE)
        default = StepLimits(largest.tokens, config.shape.num_rows)
        self.limits = limits or (lambda view: default)
        self._sequences: dict[int, Sequence] = {}  # all that have not ended, and held ones
        self._waiting = Waiting(config.policy)
        self._served = Served()
        pool = Pool(self.pool.num_usable, self.pool.page_size)
        self._reserve = reserve_of(config.reserve, pool, config.max_preemption_probability)
        self._running: list[Sequence] = []  # in order of admission; held ones too
        self._max_steps = max(bucket.steps for bucket in config.buckets)
        self._preempted: list[int] = []  # since the last plan
        self._lookup = NO_LOOKUP  # since the last plan
        self._turns = Turns(config.shape.num_pages * config.shape.page_size)
        self._num_alone = 0  # steps that a few prompt tokens have waited for company
        self._seq_ids = itertools.count()
        self._step_idx = 0  # of the next step

    def renewed(self, error: str) -> Scheduler:
        """One with nothing under way, in the place of this one: for when a method of it was cut off. What it
        still knows of ends with `error`."""
        for sequence in self._sequences.values():
            if not sequence.finished:
                sequence.finish_reason, sequence.error = FinishReason.ERROR, error
        renewed = Scheduler(self.config, self.limits)
        renewed._seq_ids, renewed._step_idx = self._seq_ids, self._step_idx
        return renewed

    def weights_changed(self) -> None:
        """What pages hold is of no use from now on, as with new weights: none is found again, and none is
        held. Running sequences go on, and what they compute is for themselves alone."""
        for hold_id in tuple(self.holdings.held):
            self.holdings.let_go(hold_id)
        self.holdings.prefixes.forget_all()
        for sequence in self._sequences.values():
            self.holdings.forget(sequence)
        for sequence in self._running:
            sequence.prompt_step = ALONE

    def reset_prefix_cache(self) -> bool:
        """Forget which pages hold what. False, and nothing is forgotten, while sequences hold pages."""
        if self.pool.num_used:
            return False
        self.weights_changed()
        return True

    def hold(self, hold_id: int, token_ids: list[int], salt: str | None) -> None:
        """Keep the full pages of tokens that have been computed, until `holdings.let_go`.

        One sequence of any length finds room beside all that is held: so every request still ends.

        Raises:
          ConfigError: where there is no such room, and where pages are not found again.
          JBatchError: while there are requests, whose pages these may be.
        """
        caching = self.config.enable_prefix_caching
        if not caching:
            raise ConfigError("enable_prefix_caching", caching, "what is prefilled is found by its tokens")
        if self._sequences:
            raise JBatchError("prefill: requests came meanwhile: let them end")
        found = self.holdings.find_tokens(token_ids, salt)
        held = {page_id for page_ids in self.holdings.held.values() for page_id in page_ids}
        most = self.pool.num_usable - self.pool.pages_for(self.max_seq_len)
        if len(held | {*found}) > most:
            raise ConfigError(
                "num_pages",
                self.pool.num_pages,
                f"the pool is too full to hold {len(found)} pages of a prompt beside {len(held)} others: at "
                f"most {most} may be held, so that one sequence of {self.max_seq_len} tokens has room",
            )
        if len(found) < len(token_ids) // self.pool.page_size:
            raise JBatchError("prefill: the prompt's pages are not in the cache any more")
        self.holdings.hold(hold_id, found)

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
        return min(self.config.max_model_len, self.pool.num_usable * self.pool.page_size)

    def key_of(self, request: Request) -> Key:
        """What the policy sorts a request by when it comes. Raises RequestError where it fails."""
        return key_of(self.config.policy, request, self._view(request.arrival))

    def _view(self, now: float) -> SchedulerView:
        return SchedulerView(
            now,
            len(self._waiting),
            len(self._running),
            self.pool.num_free,
            self.holdings.mean_expected_len,
            self._served.tokens,
        )

    def add(self, request: Request, key: Key | None = None, family: list[Sequence] | None = None) -> Sequence:
        """Queue a request, by a key that the policy gave, or by the one that it gives now. Raises
        RequestError where it can never run (see `check`), and where the policy fails.

        Args:
          family: the samples of the same prompt that were added so far, to which this one is appended.
        """
        self.check(request)
        if request.max_tokens < 1 and request.params.prompt_logprobs is None:
            raise RequestError("max_tokens", request.max_tokens, "must be at least 1 without prompt_logprobs")
        sequence = Sequence(
            seq_id=next(self._seq_ids),
            request=request,
            token_ids=list(request.prompt_token_ids),
            num_planned=len(request.prompt_token_ids),
            key=self.key_of(request) if key is None else key,
            family=[] if family is None else family,
        )
        self._served.come(request.user)
        if family is not None:
            family.append(sequence)
        self._waiting.push(sequence)
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
        self._served.go(sequence.request.user)
        if sequence.leaving:
            del self._sequences[sequence.seq_id]
        elif not sequence.running:
            self._waiting.forget(sequence)
            del self._sequences[sequence.seq_id]
        elif not self.config.admission.hold_finished:
            self.holdings.release(sequence)
            self._running.remove(sequence)
            del self._sequences[sequence.seq_id]
        elif all(held.finished for held in self._running):
            for held in self._running:
                self.holdings.release(held)
                del self._sequences[held.seq_id]
            self._running.clear()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._sequences)

    @property
    def unfinished(self) -> tuple[Sequence, ...]:
        """Waiting and running, and held ones."""
        return tuple(self._sequences.values())

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """In order of admission."""
        return tuple(self._running)

    # One step.

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None where nothing can be computed until a result comes back.

        Raises UserFunctionError where the limits' function or the policy fails; nothing has been changed
        then.
        """
        if not self._running and not self._waiting:
            return None
        view = self._view(now)
        limits = choose(self.limits, view, self._least_budget)
        self._waiting.rerank(view)
        if not self._running and self._waits_for_company(limits, now):
            return None
        if self.config.admission.refill:  # decoding sequences first: they are older, and may take pages
            slots = self._decode(self._num_steps())
            chunks = self._prefill(self._budget(limits, bool(slots.sequences)), limits)
        else:
            chunks = self._prefill(limits.max_num_batched_tokens, limits)
            slots = _Slots() if chunks else self._decode()
        if not chunks and not slots.sequences:
            return None
        plan = self._plan(slots, chunks)
        if self.config.admission.refill:
            self._let_leave(plan, slots)
        return plan

    def apply(self, plan: StepPlan, output: StepOutput) -> tuple[list[Progress], StepRecord]:
        """Take in the result of a step: what it gave each sequence, and the step's account."""
        holdings = self.holdings
        landing = Landing(self._sequences.get, self.finish, holdings.publish, holdings.distrust)
        landing.take_in(plan, output)
        if self._served.named:
            for sequence, new in landing.progress:
                self._served.charge(sequence.request.user, len(new))
        steps = plan.bucket.steps
        for sequence in landing.left_early:
            sequence.leaving, sequence.publish_at = False, NEVER
            sequence.num_computed = sequence.num_scored = sequence.num_planned - 1
            self._waiting.push(sequence)
        record = StepRecord(
            step_idx=plan.step_idx,
            slots=plan.bucket.slots * steps,
            slots_used=len(plan.seq_ids) * steps,
            tokens=plan.bucket.tokens,
            tokens_used=sum([len(chunk.token_ids) for chunk in plan.chunks]),
            useful_slots=landing.useful_slots,
            useful_tokens=landing.useful_tokens,
            padded=plan.bucket.slots * steps + plan.bucket.tokens - landing.num_live,
            wasted=landing.wasted,
            recomputed=landing.recomputed,
            output_tokens=landing.output_tokens,
            pages_used=self.pool.num_used,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_preempted=len(plan.preempted),
            looked_up=plan.lookup.wanted,
            found=plan.lookup.found,
            reachable=plan.lookup.reachable,
            num_decode_steps=steps,
        )
        return landing.progress, record

    # Prefill.

    def _budget(self, limits: StepLimits, decoding: bool) -> int:
        """Prompt tokens for a step whose slots decode, or do not. 0: they wait for company."""
        most = min(limits.max_num_batched_tokens, self._token_sizes[-1])
        if not decoding or most <= 0:
            return most
        wanted = self._num_wanted(limits, most)
        if wanted < limits.company.tokens and self._num_alone < limits.company.steps:
            self._num_alone += wanted > 0
            return 0
        return fill(wanted, self._token_sizes, most, self._least_budget)

    def _num_wanted(self, limits: StepLimits, most: int) -> int:
        """Prompt tokens that running and waiting sequences could compute now, up to about `most`."""
        wanted, free = 0, limits.max_num_seqs - len(self._running)
        for sequence in reversed(self._running):
            if sequence.decoding:
                break  # so are all older ones
            wanted += align(len(sequence.token_ids) - sequence.num_cached_planned)
        for waiting in self._waiting.some(free):
            if wanted >= most:
                break
            wanted += align(self._num_to_compute(waiting))
        return wanted

    def _num_to_compute(self, waiting: Sequence) -> int:
        """Tokens that a waiting sequence would have to compute, about."""
        if len(waiting.family) > 1 and waiting is not waiting.family[0]:
            return 1  # it begins behind its prompt
        return len(waiting.token_ids) - len(self.holdings.find(waiting)) * self.pool.page_size

    def _prefill(self, budget: int, limits: StepLimits) -> tuple[Chunk, ...]:
        """Chunks of prompts, as many as a step takes.

        One that is not its sequence's last ends with a page. So a chunk begins where pages that are found may
        end, and the rest is computed by a chunk that there might have been without them.
        """
        budget = min(budget, self._token_sizes[-1])
        if budget <= 0:
            return ()
        chunks: list[Chunk] = []
        draws_left, updates = self._room.chunk_draws, self.holdings.changes.updates
        for sequence in self._prefilling(limits):
            if not sequence.pages and len(sequence.family) > 1 and not self._begin_beside_others(sequence):
                continue
            start, end = sequence.num_cached_planned, sequence.num_known
            if end - start > budget:
                end = start + budget
                end -= end % self.pool.page_size
            if end <= start:
                break  # there is no page left in the budget
            if len(updates) + self.holdings.num_missing(sequence, end) > self._room.table_updates:
                break  # the step is full of them: it waits for the next one
            if not self._grow(sequence, end):
                break  # the youngest: it waits for the others' pages
            chunk = self._chunk(sequence, end)
            if chunk.draws and len(sequence.family) > 1:
                chunk = self._let_join(sequence, chunk, draws_left - 1, limits)
            chunks.append(chunk)
            budget -= align(end - start)
            draws_left -= len(chunk.draws)
            full = budget <= 0 or draws_left <= 0 or len(chunks) == self._room.chunks
            if full or end < sequence.num_known:
                break
        if chunks:
            self._num_alone = 0
        return tuple(chunks)

    def _prefilling(self, limits: StepLimits) -> Iterator[Sequence]:
        """Running sequences with tokens to prefill, oldest first, then those that may join."""
        if not self.config.admission.refill and not self._running:
            for _ in self._admit_waiting(limits):  # the whole batch at once
                pass
        for sequence in tuple(self._running):
            if sequence.prefilling and not sequence.finished:
                yield sequence
        if self.config.admission.refill:
            yield from self._admit_waiting(limits)

    def _chunk(self, sequence: Sequence, end: int) -> Chunk:
        chunk = chunk_of(sequence, sequence.num_cached_planned, end)
        sequence.num_cached_planned = end
        sequence.num_planned += len(chunk.draws)
        sequence.decoding = bool(chunk.draws)
        if sequence.prompt_step == NOT_YET and end >= sequence.num_prompt:
            sequence.prompt_step = self._step_idx
        return chunk

    # Samples of one prompt.

    def _begin_beside_others(self, sequence: Sequence) -> bool:
        """Give a sample the pages of another one that hold their prompt. False where it has still to wait for
        the step that computes it."""
        source = source_of(sequence, self._step_idx)
        if source is not None:
            self.holdings.share_prompt(source, sequence, shared_start(sequence))
            if sequence.num_found is None:
                sequence.num_found = sequence.num_cached_planned
        return source is not None or not is_on_the_way(sequence)

    def _let_join(self, leader: Sequence, chunk: Chunk, most: int, limits: StepLimits) -> Chunk:
        """Up to `most` other samples draw from the last chunk of their prompt, too. They have its pages, and
        decode from the next step on."""
        if leader.num_known > leader.num_prompt or leader.prompt_step != self._step_idx:
            return chunk  # it is computed again, with its output; or weights have changed meanwhile
        if self.config.admission.refill:
            self._admit_samples(leader, most, limits)
        joining = [sample for sample in leader.family if draws_at_the_end_of_its_prompt(sample)][:most]
        offset = len(chunk.token_ids) - 1
        draws = list(chunk.draws)
        for sample in joining:
            self.holdings.share_prompt(leader, sample, chunk.end)
            draws.append(first_draw(sample, offset))
            sample.num_planned += 1
            sample.decoding, sample.prompt_step = True, self._step_idx
            sample.num_found = leader.num_found
        return chunk._replace(draws=tuple(draws))

    def _admit_samples(self, leader: Sequence, most: int, limits: StepLimits) -> None:
        """Admit up to `most` other samples of a prompt, as long as they are the next in line. Each of them,
        and of those that run, is left a page to grow into."""
        for _ in range(most):
            sample = self._waiting.first()
            if sample is None or sample.family is not leader.family or sample.num_planned > sample.num_prompt:
                return
            if len(self._running) >= min(self._most(limits), self.pool.num_free):
                return
            if not self._reserve.admits(self._running, sample):
                return
            self._admit(sample, 0)

    # Decode.

    def _num_steps(self) -> int:
        """How often to decode in the next dispatch: several times where nobody waits, where there are pages
        for all, and where at most a quarter of the slots would be idle behind an end that is known."""
        most = self._max_steps
        if most == 1 or self._waiting or self.holdings.num_watched:
            return 1
        useful = missing = 0
        for sequence in self._running:
            if not sequence.decoding:
                return 1
            steps = min(most, sequence.max_len - sequence.num_planned)
            useful += steps
            missing += self.holdings.num_missing(sequence, sequence.num_cached_planned + steps)
        enough = useful >= MIN_STEP_USE * most * len(self._running)
        return most if enough and self.pool.can_allocate(missing) else 1

    def _decode(self, num_steps: int = 1) -> _Slots:
        """The sequences that decode, with pages more where they are needed."""
        hold, page_size = self.config.admission.hold_finished, self.pool.page_size
        sequences: list[Sequence] = []
        frozen: list[bool] = []
        last: list[Sequence] = []
        running = self.running
        if self.pool.any_shared and not hold:  # a padded batch found pages for all, as if none was shared
            running = tuple(self._turns.take(running, num_steps))
        for sequence in running:
            if not sequence.decoding:
                continue
            left = sequence.max_len - sequence.num_planned
            ended = left <= 0 or sequence.finish_reason is not None
            if ended and not hold:
                continue
            if not ended:
                steps = num_steps if num_steps < left else left
                num_cached = sequence.num_cached_planned + steps
                full = num_cached > len(sequence.pages) * page_size or sequence.forked
                if full and not self._grow(sequence, num_cached):
                    self._preempt(sequence)  # it was the youngest
                    if not sequences:  # and alone in its turn
                        return self._decode(num_steps)
                    break
                sequence.num_cached_planned = num_cached
                sequence.num_planned += steps
                if steps == left:
                    last.append(sequence)
            sequences.append(sequence)
            frozen.append(ended)
        if all(frozen):
            return _Slots()
        return _Slots(tuple(sequences), tuple(frozen) if hold else (), num_steps, last)

    def _plan(self, slots: _Slots, chunks: tuple[Chunk, ...]) -> StepPlan:
        """The step of these, in the smallest bucket that holds them."""
        num_tokens = sum([align(len(chunk.token_ids)) for chunk in chunks])
        updates, copies, tables = self.holdings.take_changes()
        bucket = smallest_bucket(
            self._buckets,
            self.config.shape,
            slots=len(slots.sequences),
            tokens=num_tokens,
            chunks=len(chunks),
            draws=sum([len(chunk.draws) for chunk in chunks]),
            updates=len(updates),
            steps=slots.num_steps,
        )
        preempted, self._preempted = tuple(self._preempted), []
        lookup, self._lookup = self._lookup, Lookup()
        self._step_idx += 1
        return StepPlan(
            step_idx=self._step_idx - 1,
            bucket=bucket,
            seq_ids=tuple([s.seq_id for s in slots.sequences]),
            rows=tuple([s.row for s in slots.sequences]),
            frozen=slots.frozen,
            chunks=chunks,
            table_updates=tuple(updates),
            page_copies=tuple(copies),
            sampler=self.holdings.sampler,
            preempted=preempted,
            lookup=lookup,
            tables=tuple([Table(row, page_ids) for row, page_ids in tables.items()]),
        )

    # Pages and rows.

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence pages for `num_tokens`, taking them from younger ones where none are free."""
        while not self.pool.can_allocate(self.holdings.num_missing(sequence, num_tokens)):
            youngest = self._running[-1]
            if youngest is sequence:
                return False
            self._preempt(youngest)
        self.holdings.take_pages(sequence, num_tokens)
        return True

    def _let_leave(self, plan: StepPlan, slots: _Slots) -> None:
        """Those whose last token is planned give up their pages and rows: steps run in order, so the next one
        may use them."""
        seq_ids = [
            seq_id for chunk in plan.chunks for seq_id in (chunk.seq_id, *[d.seq_id for d in chunk.draws])
        ]
        begun = [self._sequences[seq_id] for seq_id in dict.fromkeys(seq_ids)]
        for sequence in (*slots.last, *(s for s in begun if s.num_planned >= s.max_len and not s.prefilling)):
            sequence.leaving = True
            self._running.remove(sequence)
            self.holdings.release_early(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's pages; its tokens will be prefilled again."""
        sequence.num_computed = max(sequence.num_computed, sequence.num_cached_planned)
        sequence.num_scored = sequence.num_computed
        sequence.num_preemptions += 1
        self._preempted.append(sequence.seq_id)
        self._running.remove(sequence)
        self.holdings.release(sequence)
        self._waiting.push(sequence)

    def retract(self) -> None:
        """Take the pages of all that run: their keys and values are of weights that are gone. The known
        tokens, kept, are prefilled again. No step may be in flight."""
        for sequence in reversed(self.running):
            if sequence.finished:  # but held
                self._running.remove(sequence)
                self.holdings.release(sequence)
                del self._sequences[sequence.seq_id]
                continue
            self._preempt(sequence)
        self.weights_changed()
        for sequence in self._sequences.values():
            if sequence.num_known == sequence.num_prompt:
                sequence.num_scored = 0  # all of its prompt by the same weights

    def _admit_waiting(self, limits: StepLimits) -> Iterator[Sequence]:
        """Admit one after the other, while rows and pages last.

        Running ones have their chunks by now: one that is not through would have taken the whole budget. A
        page is left for each of them to grow into, or who is admitted now would soon be preempted.

        Pages that hold the beginning of a sequence are looked up now, and are its own at once: while it
        waited they could have gone.
        """
        most = self._most(limits)
        spare, room = self.pool.num_free - len(self._running), PREFIX_PAGES
        while len(self._running) < most and (sequence := self._waiting.first()) is not None:
            if sequence.num_planned > sequence.num_known:  # its tokens are in flight
                return
            start = self._start_of(sequence)
            if not start and is_on_the_way(sequence):
                return  # so is its prompt
            found = [] if start or runs_already(sequence) else self.holdings.find(sequence)
            claim = self._claim(sequence, start, found)
            if claim > spare or len(found) > room or not self._reserve.admits(self._running, sequence):
                return
            spare -= claim
            room -= len(found)
            self._admit(sequence, sequence.num_known - start)
            if not start:
                self.holdings.take_found(sequence, found)
                self._note_lookup(sequence)
            num_running = len(self._running)
            yield sequence
            spare -= len(self._running) - num_running  # other samples of its prompt, a page each

    def _admit(self, sequence: Sequence, num_tokens: int) -> None:
        """Let a waiting sequence run, which has so many tokens to compute."""
        self._waiting.pop(sequence)
        if self._served.named:
            self._served.charge(sequence.request.user, num_tokens)
        self.holdings.take_row(sequence)
        self._running.append(sequence)

    def _note_lookup(self, sequence: Sequence) -> None:
        """What was found of a sequence that has just been admitted."""
        found = sequence.num_cached
        if sequence.num_found is None:
            sequence.num_found = found
        if self.holdings.reads(sequence):
            wanted, found_before, reachable = self._lookup
            reachable += self.holdings.reachable(sequence)
            self._lookup = Lookup(wanted + sequence.num_known, found_before + found, reachable)

    def _most(self, limits: StepLimits) -> int:
        """Sequences that may run at once."""
        return 1 if self.config.admission.one_by_one else min(limits.max_num_seqs, self.config.shape.num_rows)

    def _waits_for_company(self, limits: StepLimits, now: float) -> bool:
        """Whether nothing starts yet, because a static batch is not full. Nothing runs: all known wait."""
        config, waiting = self.config, self._sequences.values()
        return config.admission.wait_full and not may_start(
            waiting, self._most(limits), now, config.batch_wait_timeout_s
        )

    def _claim(self, sequence: Sequence, start: int, found: list[int]) -> int:
        """Pages that a waiting sequence must find free.

        A padded batch is never preempted, and all of it is in each step: it is counted as if nothing was
        shared.
        """
        if self.config.admission.hold_finished:
            return self.pool.pages_for(sequence.max_len)
        shared = start // self.pool.page_size + len(found) - self.holdings.num_unused(found)
        return self.pool.pages_for(sequence.next_len) - shared

    def _start_of(self, sequence: Sequence) -> int:
        """The position from which a waiting sequence would compute: 0, or where it has another's pages."""
        return shared_start(sequence) if source_of(sequence, self._step_idx) else 0
