"""The engine: requests in, steps, outputs out."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from jbatch.config import UpdateMode, plain
from jbatch.engine.description import describe_engine
from jbatch.engine.forked import forked
from jbatch.engine.intake import Asked, Intake, ScheduleFields, schedule_of
from jbatch.engine.metric import Metric
from jbatch.engine.notes import LetGo, New, Notes
from jbatch.engine.pipeline import Pages, Pipeline, ReadPages
from jbatch.engine.records import EngineStep
from jbatch.engine.requests import Aside, Requests
from jbatch.engine.trace import TraceWriter
from jbatch.engine.turn import STEP, Turn
from jbatch.engine.updating import Updates
from jbatch.errors import JBatchError, RequestError
from jbatch.host.metrics import StepRecord, Summary
from jbatch.host.request import Key, Request
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.runner import Runner

if TYPE_CHECKING:  # it needs this module
    from jbatch.engine.driver import Driver

Result = TypeVar("Result")


class Engine:
    """Continuous batching, driven by hand: `add_request`, then `step` while `has_unfinished`.

    Where an exception cuts one of its methods off, Ctrl-C at any place included, every request ends with an
    error and the engine works on.

    One thread steps it. From any other thread, and from a signal's handler, `add_request` and `abort` may be
    called (what comes during a step is done before the next one), and `summary`, `num_unfinished` and
    `has_unfinished` may be read; `update`, from any other thread. All else is refused with JBatchError: a
    second `step` at one time, requests while another engine has any on the same device state, or while a call
    of LLM drives this engine, and whatever a forked process asks for.

    Attributes:
      driver: the call of LLM that adds requests and steps until they have ended, while there is one.
      pipeline: its steps; only for who has the turn.

    Args:
      on_record: is told of each step once it has landed, with its times; limits that follow them are.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner[Any],
        intake: Intake,
        *,
        overlap: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        on_record: Callable[[StepRecord], None] | None = None,
    ):
        self.intake, self.tokenizer, self.clock = intake, intake.tokenizer, clock
        self.tenancy = runner.tenancy
        self.requests = Requests(intake.tokenizer, intake.history, clock)
        self.pipeline = Pipeline(
            scheduler, runner, self.requests, intake.vocab_size, depth=int(overlap), clock=clock, sleep=sleep
        )
        if on_record is not None:
            self.pipeline.on_record = on_record
        self.driver: Driver | None = None
        self._turn, self._notes = Turn(), Notes()
        self._updates = Updates(self._turn, self._notes, self.pipeline, sleep)
        self._request_idx, self._serials = itertools.count(), itertools.count()

    def __repr__(self) -> str:
        if self.closed:
            return "<Engine: closed>"
        about = describe_engine(self.scheduler.config, self.num_rows, self.num_unfinished, self.summary)
        return f"<Engine: {about}>"

    @property
    def scheduler(self) -> Scheduler:
        """The present one: after an interrupt, and for a trace, there is a new one."""
        return self.pipeline.scheduler

    @property
    def runner(self) -> Runner[Any]:
        """What computes its steps."""
        return self.pipeline.runner

    @property
    def summary(self) -> Summary:
        """Of all its steps."""
        return self.pipeline.summary

    @property
    def num_rows(self) -> int:
        """Sequences that may run at once."""
        return self.scheduler.config.shape.num_rows

    def metrics(self, compilations: int) -> list[Metric]:
        """What `LLM.get_metrics` gives; `compilations`: after warm-up."""
        return self.requests.monitor.read(self.scheduler, self.summary, compilations)

    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        index: int | None = None,
        request_idx: int | None = None,
        first_scored: int = 0,
        cache_salt: str | None = None,
        **schedule: Unpack[ScheduleFields],
    ) -> Request:
        """Queue a request.

        Args:
          prompt: text, or token ids.
          index: of the request in its input: with the engine's seed it gives the seed of a request that
            has none. By default requests are counted as they are added.
          request_idx: what a logits_fn knows the request by, from 0 to 2^31 - 1; by default `index`
            (modulo 2^31).
          first_scored: the first token of the prompt whose log-probability is wanted, with prompt_logprobs.
          cache_salt: what the request shares keys and values by: with those of the same salt alone.
          schedule: the fields of Schedule, by name.

        Returns:
          The request as it is queued: with its limits, its seed and the length that is expected of it.

        Raises:
          RequestError: for a request that cannot be served, naming field, value and limit; also where the
            policy fails for it.
          JBatchError: while another has the device, see above, and after `LLM.close`.
        """
        self._check_caller()
        self.tidy()
        index = next(self._request_idx) if index is None else plain(index)
        asked = Asked(index, request_idx, first_scored, cache_salt, schedule_of(schedule))
        request = self.checked(request_id, prompt, params or SamplingParams(), asked)
        self.queue(request, self.scheduler.key_of(request))
        return request

    def checked(
        self, request_id: str, prompt: str | Sequence[int], params: SamplingParams, asked: Asked
    ) -> Request:
        """A request that can be queued. Raises RequestError for one that cannot be served."""
        request = self.intake.request(request_id, prompt, params, asked, self.runner.samplers)
        self.scheduler.check(request)
        return request

    def queue(self, request: Request, key: Key) -> None:
        """Queue a request that has been checked; `key`: what the policy gives it. Raises as `add_request`."""
        with self.tenancy.lock:
            self._check_caller()  # someone may have come
            self.tenancy.take(self)
            if self.has(request.request_id):
                raise RequestError("request_id", request.request_id, "a request of this id has not ended yet")
            self._notes.leave(New(next(self._serials), request, key))
        self.tidy()

    @property
    def closed(self) -> bool:
        """Whether its LLM was closed."""
        return self.tenancy.closed

    def check_open(self) -> None:
        """Raise JBatchError where its LLM was closed."""
        self.tenancy.check_open()

    def has(self, request_id: str) -> bool:
        """Whether a request of this id has not ended."""
        # It may go from the one to the other meanwhile, so they are looked at in this order.
        return request_id in self._notes.new_ids or request_id in self.requests.unfinished

    def abort(self, request_id: str) -> None:
        """End a request in whatever state it is, with all its samples; its output comes with the next step.
        Unknown ids and requests that have ended are ignored."""
        self.tenancy.check_process()
        self._notes.leave(request_id)
        self.tidy()

    def tidy(self) -> bool:
        """Mend what was cut off; queue and abort what was asked for. False where a step is under way, in
        another thread or around this call: then the next step does it."""
        self.tenancy.check_process()
        if not self._turn.take("add_request or abort", sys._getframe()):
            return False
        try:
            self._notes.follow(self.pipeline, self._updates.hold_back)
        finally:
            self._turn.leave()
        return True

    def set_aside(self) -> Aside:
        """Take what no step has handed out yet; to be given back."""
        return self.requests.set_aside()

    def give_back(self, aside: Aside) -> None:
        """Hand out these with the next steps, too."""
        self.requests.give_back(aside)

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to do."""
        requests = self.requests
        return (
            bool(requests.has_ended or self._notes or requests.has_steps)
            or self.pipeline.has_unfinished
            or self._updates.hold_back()  # its steps have not been laid ready
        )

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self.requests.unfinished) + len(self._notes.new_ids)

    def step(self, *, wait: bool = True) -> EngineStep:
        """Launch the next step, then take in the result of the one before (of this one, without overlap).

        Where that raises, every request ends with an error, which the next call hands out. Where all there is
        to do is to wait (mode "static-full", for a full batch), it waits a millisecond and returns: new
        requests may be added.

        Args:
          wait: for the result; without, it is taken in by a later call where the device is not done.

        Raises:
          JBatchError: while another step is under way, in another thread or around this call, and after
            `LLM.close`.
          UserFunctionError: where the limits' function fails. All requests are as they were.
        """
        self._check_caller()
        if not self._turn.take(STEP, sys._getframe()):
            raise JBatchError(
                "a step of this engine is under way, in another thread or around this call: one at a time"
            )
        try:
            self._notes.follow(self.pipeline, self._updates.hold_back)
            if not self.requests.has_steps:
                self.pipeline.step(wait=wait, holds_back=self._updates.hold_back())
            return self.requests.hand_out()
        finally:
            self._turn.leave()

    def _between_steps(self, name: str, do: Callable[[], Result]) -> Result:
        """Do something that no step may come into."""
        self._check_caller()
        if not self._turn.take(name, sys._getframe()):
            raise JBatchError("a step of this engine is under way, in another thread or around this call")
        try:
            self._notes.follow(self.pipeline, self._updates.hold_back)
            return do()
        finally:
            self._turn.leave()

    def _check_caller(self) -> None:
        """Raise JBatchError in a forked process, after `LLM.close`, and while someone else drives."""
        self.tenancy.check_process()
        self.check_open()
        if self.driver is not None:
            self.driver.check_caller()

    def update(self, replace: Callable[[], None], mode: UpdateMode) -> None:
        """Have the weights replaced under the requests that there are.

        It may be called from any thread, also while another one steps: the weights change between two steps.

        Args:
          replace: does it, for the runner: see `LoadedWeights`.
          mode: what becomes of requests that have not ended. "retract": what runs is prefilled again by the
            new weights, and keeps its tokens. "wait": they end first, by steps that are done here unless
            another thread does them; who steps next is handed what these gave. "abort": they end. With the
            last two, what is added meanwhile begins afterwards.

        Raises:
          JBatchError: within a step of this engine, as of a function of the user's that it calls.
        """
        self.tenancy.check_process()
        self._updates.update(replace, mode, self.tidy)

    def reset_prefix_cache(self) -> bool:
        """Forget what is in the cache. False, and nothing is forgotten, while requests have pages there.

        Raises JBatchError while a step is under way, in another thread or around this call."""
        return self._between_steps("reset_prefix_cache", self.pipeline.reset_prefix_cache)

    def fork(self, request_id: str, fork_id: str, *, seed: int | None = None, sample_idx: int = 0) -> None:
        """Let a request go on as two from the tokens that it has: a new one, whose prompt are the other's
        prompt and output, with its parameters and as many tokens as it has left. Full pages are the same in
        both, where they can be found (`enable_prefix_caching`); the last, partial one is computed again. From
        here on each draws for itself.

        Penalties for what was generated, `min_tokens` and stop strings count from here for the new one.

        Args:
          seed: of the new one; by default it is derived, as for every request without one.
          sample_idx: which of the request's samples.

        Raises:
          RequestError: for a request that is not known or has ended, and for what `add_request` refuses.
          JBatchError: during a step, and where `add_request` raises it.
        """
        prompt, params, request_idx, salt, schedule = self._between_steps(
            "fork", lambda: forked(self.requests.sequence_of(request_id, sample_idx), seed)
        )
        self.add_request(fork_id, prompt, params, request_idx=request_idx, cache_salt=salt, **schedule)

    def read_pages(self, request_id: str, read: ReadPages, sample_idx: int = 0) -> Pages:
        """What `read` makes of the pages of a request that has not ended, and of the number of its tokens
        that they hold. Steps in flight are waited for; the next calls of `step` hand out what they gave."""
        return self._between_steps("kv", lambda: self.pipeline.read_pages(request_id, sample_idx, read))

    def read_held(self, hold_id: int, read: ReadPages) -> Pages:
        """The same of pages that are held. Raises JBatchError where they are no more."""
        return self._between_steps("kv", lambda: self.pipeline.read_held(hold_id, read))

    def hold(self, token_ids: list[int], salt: str | None) -> int:
        """Keep the full pages of these tokens, which have just been computed, until `let_go` of what this
        gives.

        Raises:
          ConfigError: where the pool has no room for that, or nothing is cached.
          JBatchError: while requests are under way.
        """
        hold_id = next(self._serials)
        self._between_steps("prefill", lambda: self.pipeline.hold(hold_id, token_ids, salt))
        return hold_id

    def let_go(self, hold_id: int) -> None:
        """Hold pages no longer; during a step this is done before the next one. Idempotent."""
        if self.tenancy.forked:
            return
        self._notes.leave(LetGo(hold_id))
        self.tidy()

    def trace_to(self, path: str | Path) -> TraceWriter:
        """From now on, write a line for each decision of the scheduler to a file, for `jbatch replay`, until
        its `close`. The prefix cache is empty then.

        Raises:
          JBatchError: while requests are unfinished or prompts held, and while someone else drives.
          OSError: where the file cannot be opened.
        """
        return self._between_steps("trace_to", lambda: self.pipeline.trace_to(path))
