"""Which sequences the next step computes. Deterministic: no clock, no random numbers, no I/O.

The host runs one step ahead of the device: `schedule` plans with upper bounds (every issued step gives
its sequences a token), `apply` reconciles. A sequence that ends by its length is known to end in advance,
and leaves its row to others as soon as its last token is planned; one that meets a stop id is masked by the
device at once and known here one step late.
"""

from __future__ import annotations

import itertools
import sys

from jbatch.config import WHOLE_PAGE, check_range
from jbatch.errors import ConfigError, JBatchError, RequestError
from jbatch.host.admission import Admitter, NextStep
from jbatch.host.config import SchedulerConfig
from jbatch.host.decode import Decode, Slots
from jbatch.host.landing import Landing, Progress
from jbatch.host.lifecycle import Lifecycle
from jbatch.host.limits import Limits, SchedulerView, StepLimits, check_limits, choose
from jbatch.host.metrics import StepRecord
from jbatch.host.plan import Chunk, StepPlan, Table
from jbatch.host.policy import key_of
from jbatch.host.prefill import Prefill
from jbatch.host.request import Key, Request, Sequence
from jbatch.outputs import FinishReason
from jbatch.seam.bucket import align, smallest_bucket
from jbatch.seam.step_output import StepOutput


class Scheduler:
    """Plans steps, and takes in their results.

    Attributes:
      lifecycle: waiting and running sequences, and what they hold.
      limits: a function that gives the budgets of a step.
    """

    def __init__(self, config: SchedulerConfig, limits: Limits | None = None):
        tokens, self._least_budget = config.largest_bucket.tokens, config.least_budget
        check_range("token_buckets", tokens, self._least_budget, sys.maxsize, WHOLE_PAGE)
        default = StepLimits(tokens, config.shape.num_rows)
        self.config = config
        self.limits = (lambda view: default) if limits is None else check_limits(limits)
        self.lifecycle = Lifecycle(config)
        self.holdings, self.pool = self.lifecycle.holdings, self.lifecycle.holdings.pool
        self._waiting = self.lifecycle.waiting
        self._admitter = Admitter(config, self.lifecycle)
        self._prefill = Prefill(config, self.lifecycle, self._admitter)
        self._decode = Decode(config, self.lifecycle)
        self._buckets = sorted(config.buckets, key=lambda bucket: bucket.num_places)
        self._seq_ids = itertools.count()
        self._step_idx = 0  # of the next step

    def renewed(self, error: str) -> Scheduler:
        """One with nothing under way, in the place of this one: for when a method of it was cut off. What it
        still knows of ends with `error`."""
        for sequence in self.lifecycle.sequences.values():
            if not sequence.finished:
                sequence.finish_reason, sequence.error = FinishReason.ERROR, error
        renewed = Scheduler(self.config, self.limits)
        renewed._seq_ids, renewed._step_idx = self._seq_ids, self._step_idx
        return renewed

    def weights_changed(self) -> None:
        """No page is found again from now on, and none is held: running sequences go on for themselves."""
        self.lifecycle.weights_changed()

    def retract(self) -> None:
        """Let all that run wait again, without a page: their tokens are prefilled by weights that have come.
        No step may be in flight."""
        self.lifecycle.retract()

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
        if self.lifecycle.sequences:
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
        return self.config.max_seq_len

    def key_of(self, request: Request) -> Key:
        """What the policy sorts a request by when it comes. Raises RequestError where it fails."""
        return key_of(self.config.policy, request, self._view(request.arrival))

    def _view(self, now: float) -> SchedulerView:
        return SchedulerView(
            now,
            len(self._waiting),
            len(self.lifecycle.running),
            self.pool.num_free,
            self.holdings.mean_expected_len,
            self.lifecycle.served.tokens,
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
        if family is not None:
            family.append(sequence)
        self.lifecycle.add(sequence)
        return sequence

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_reason: str | int | None = None,
        error: str | None = None,
    ) -> None:
        """End a sequence in whatever state it is; what is in flight for it is dropped. Idempotent."""
        self.lifecycle.finish(sequence, reason, stop_reason, error)

    @property
    def has_unfinished(self) -> bool:
        return bool(self.lifecycle.sequences)

    @property
    def unfinished(self) -> tuple[Sequence, ...]:
        """Waiting and running, and held ones."""
        return tuple(self.lifecycle.sequences.values())

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """In order of admission."""
        return tuple(self.lifecycle.running)

    # One step.

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None where nothing can be computed until a result comes back.

        Raises UserFunctionError where the limits' function or the policy fails; nothing has been changed
        then.
        """
        if not self.lifecycle.running and not self._waiting:
            return None
        view = self._view(now)
        limits = choose(self.limits, view, self._least_budget)
        self._waiting.rerank(view, self.lifecycle.running)
        if not self.lifecycle.running and self._admitter.waits_for_company(limits, now):
            return None
        step, prefill = NextStep(self._step_idx, limits), self._prefill
        if self.config.admission.refill:  # decoding sequences first: they are older, and may take pages
            slots = self._decode.slots(self._decode.num_steps())
            chunks = prefill.chunks(prefill.budget(limits, bool(slots.sequences)), step)
        else:
            chunks = prefill.chunks(limits.max_num_batched_tokens, step)
            slots = Slots() if chunks else self._decode.slots()
        if not chunks and not slots.sequences:
            return None
        plan = self._plan(slots, chunks)
        if self.config.admission.refill:
            self._let_leave(plan, slots)
        return plan

    def apply(self, plan: StepPlan, output: StepOutput) -> tuple[list[Progress], StepRecord]:
        """Take in the result of a step: what it gave each sequence, and the step's account."""
        lifecycle, holdings = self.lifecycle, self.holdings
        landing = Landing(lifecycle.sequences.get, lifecycle.finish, holdings.publish, holdings.distrust)
        landing.take_in(plan, output)
        if lifecycle.served.named:
            for sequence, new in landing.progress:
                lifecycle.served.charge(sequence.request.user, len(new))
        for sequence in landing.left_early:
            lifecycle.come_back(sequence)
        return landing.progress, landing.account(
            plan,
            pages_used=self.pool.num_used,
            num_running=len(lifecycle.running),
            num_waiting=len(lifecycle.waiting),
        )

    def _plan(self, slots: Slots, chunks: tuple[Chunk, ...]) -> StepPlan:
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
            preempted=self.lifecycle.take_preempted(),
            lookup=self._admitter.take_lookup(),
            tables=tuple([Table(row, page_ids) for row, page_ids in tables.items()]),
        )

    def _let_leave(self, plan: StepPlan, slots: Slots) -> None:
        """Those whose last token is planned give up their pages and rows: steps run in order, so the next one
        may use them."""
        seq_ids = [
            seq_id for chunk in plan.chunks for seq_id in (chunk.seq_id, *[d.seq_id for d in chunk.draws])
        ]
        begun = [self.lifecycle.sequences[seq_id] for seq_id in dict.fromkeys(seq_ids)]
        for sequence in (*slots.last, *(s for s in begun if s.num_planned >= s.max_len and not s.prefilling)):
            self.lifecycle.leave(sequence)
