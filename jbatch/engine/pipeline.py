"""Steps, one ahead of the device: planned, submitted, collected, applied. And what happens between them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jbatch.engine.logprobs import take_in
from jbatch.engine.packing import note_scheduled, pack_step
from jbatch.engine.records import InFlight, Progress
from jbatch.engine.requests import Requests
from jbatch.engine.trace import NoTrace, Times, TraceWriter
from jbatch.errors import JBatchError, UserFunctionError
from jbatch.host.metrics import StepRecord, Summary
from jbatch.host.plan import StepPlan
from jbatch.host.request import Key, Request, Sequence
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.seam.loaded import Version
from jbatch.seam.runner import Runner

Result = TypeVar("Result")
Pages = Any  # an array of keys and values, which nobody here looks into
ReadPages = Callable[[list[int], int], Pages]  # of pages, in order, and the tokens that they hold
NAP_S = 0.001  # of a step that finds nothing to compute: long enough to cost no processor, and hardly late


class Pipeline:
    """What steps change: the scheduler, the requests, and what is in flight. One call at a time.

    An exception may cut any method off, a signal's at any line, and what the scheduler holds may then be half
    of a change. So whatever changes it notes before that it is not whole, and afterwards that it is. Where it
    is not whole, who comes next must `mend` first: every request ends with an error, and all begins anew.
    A step that fails is mended at once, for its reason to be that error: tokens are lost, so no running row
    can be trusted.

    Args:
      depth: steps that the device may have beside the one that is planned.

    Attributes:
      is_whole: False while something changes, and from where that was cut off.
      summary: of all steps.
      on_record: is told of each step, with its times.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner[Any],
        requests: Requests,
        vocab_size: int,
        *,
        depth: int,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ):
        self.scheduler, self.runner, self.requests = scheduler, runner, requests
        self.summary = Summary()
        self.on_record: Callable[[StepRecord], None] = lambda record: None
        self.is_whole = True
        self._vocab_size, self._depth, self._clock, self._sleep = vocab_size, depth, clock, sleep
        self._trace = NoTrace()
        self._in_flight: deque[InFlight] = deque()
        self._last_ready = 0.0
        self._tenancy = runner.tenancy
        self._version = self._tenancy.weights.version  # that all rows and pages are of
        self._times_lost = self._tenancy.times_lost

    def _change(self, do: Callable[[], Result]) -> Result:
        """Do something that leaves half of a change where it is cut off."""
        self.is_whole = False
        result = do()
        self.is_whole = True
        return result

    def mend(self, reason: str) -> None:
        """Where a change was cut off, end every request with `reason` as its error, and begin anew. It may be
        cut off, too, and called again."""
        if self.is_whole:
            return
        self._in_flight.clear()
        self._trace.close("the engine was cut off here, and began anew")
        self.scheduler = self.scheduler.renewed(error=reason)
        for sample in list(self.requests.samples.values()):
            self.requests.finish(sample)
        self.is_whole = True

    @property
    def has_unfinished(self) -> bool:
        """Whether there is anything to plan or to take in."""
        return bool(self.requests.samples or self._in_flight) or self.scheduler.has_unfinished

    # Requests.

    def add(self, serial: int, request: Request, key: Key) -> None:
        """Queue a request, with all its samples; unless it is there."""
        if request.request_id in self.requests.unfinished:
            return
        if request.params.max_tokens == 0 and request.params.prompt_logprobs is None:
            self.requests.end_empty(serial, request)
            return
        self._change(lambda: self._queue(serial, request, key))

    def _queue(self, serial: int, request: Request, key: Key) -> None:
        sequences: list[Sequence] = []
        try:
            for sample_idx in range(request.params.n):
                asked = dataclasses.replace(request, sample_idx=sample_idx)
                self._trace.added(self.scheduler.add(asked, key, sequences))
            self.requests.begin(serial, request, sequences)
        except Exception as error:  # a tokenizer's, of this request alone
            for sequence in sequences:
                self._end_early(sequence, FinishReason.ABORT)
            self.requests.end_refused(serial, request, str(error))

    def abort(self, request_id: str) -> None:
        """End a request with what it has, and with all its samples; unless it is not there."""
        if request_id in self.requests.unfinished:
            self._change(lambda: self._abort(request_id))

    def _abort(self, request_id: str) -> None:
        for seq_id, output in tuple(self.requests.unfinished[request_id].samples.items()):
            if output is None:
                sample = self.requests.samples[seq_id]
                self._end_early(sample.sequence, FinishReason.ABORT)
                self.requests.finish(sample)

    def _end_early(self, sequence: Sequence, reason: FinishReason, stop_reason: str | None = None) -> None:
        """End a sequence that the scheduler would go on with."""
        self.scheduler.finish(sequence, reason, stop_reason)
        self._trace.ended(sequence, reason)

    # Steps.

    def step(self, *, holds_back: bool, wait: bool = True) -> None:
        """Launch the next step, take in the result of the one before, and lay ready what it gave.

        Args:
          holds_back: there may be requests that wait for other weights.
          wait: for the result, and take a nap where there is nothing to do but to wait.
        """
        begin = self._clock()
        self.is_whole = False
        record: StepRecord | None = None
        progress: list[Progress] = []
        try:
            with self._tenancy.weights.lock:
                plan = self._launch(begin) if len(self._in_flight) <= self._depth else None
            due = self._in_flight and (plan is None or len(self._in_flight) > self._depth)
            if due and (wait or self.runner.is_ready(self._in_flight[0].handle)):
                record, progress = self._collect(self._in_flight.popleft())
        except UserFunctionError:
            self.is_whole = True  # it is the first thing that a step does
            raise
        except BaseException as error:  # an interrupt included
            self.mend(f"a step failed: {type(error).__name__}: {error}")
            raise
        self.is_whole = True
        idle = plan is None and record is None and not self.requests.has_ended
        if idle and wait and (holds_back or self.requests.samples):
            self._sleep(NAP_S)
        self.requests.lay_ready(plan, record, progress)

    def _launch(self, begin: float) -> StepPlan | None:
        """Plan the next step and submit it. Where the weights have changed, what is in flight comes first,
        and then all that runs begins anew."""
        version = self._tenancy.weights.version
        if version is not self._version and self._in_flight:
            return None
        self._follow_changes(version)
        plan = self.scheduler.schedule(begin)
        self._trace.planned(begin, plan)
        if plan is not None:
            shape, samples = self.scheduler.config.shape, self.requests.samples
            handle = self.runner.submit(pack_step(plan, shape, self._vocab_size, samples, self.runner))
            note_scheduled(plan, samples, begin)
            submitted = self._clock()
            self._in_flight.append(InFlight(plan, handle, submitted, submitted - begin, version))
        return plan

    def _follow_changes(self, version: Version) -> None:
        """What runs begins anew where weights have changed; no step is in flight then. No page is found again
        that is not what it was: a step of another engine may have written to it."""
        if version is not self._version:
            self.scheduler.retract()
            self._trace.told("retract")
            self._version = version
        times_lost = self._tenancy.times_lost
        if self._times_lost != times_lost:
            self.scheduler.weights_changed()
            self._trace.told("weights_changed")
            self._times_lost = times_lost

    def _collect(self, step: InFlight) -> tuple[StepRecord, list[Progress]]:
        output, ready = self.runner.collect(step.handle)
        begin = self._clock()
        device_s = max(0.0, ready - max(step.submitted, self._last_ready))
        self._last_ready = ready
        take_in(step.plan, output, self.requests.logprobs_of)  # first: `apply` may end a sequence
        sequences, record = self.scheduler.apply(step.plan, output)
        times = Times(step.submitted, ready, begin)
        self._trace.landed(step.plan, output, record, times, sequences)
        progress = [self._follow(*new, begin, step.version) for new in sequences]
        host_s = step.host_s + self._clock() - begin
        record = dataclasses.replace(record, host_s=host_s, device_s=device_s)
        self.summary = self.summary.with_step(record)
        self.requests.monitor.step_ended(record, self._clock())
        self._tell(record)
        return record, progress

    def _tell(self, record: StepRecord) -> None:
        try:
            self.on_record(record)
        except Exception as error:  # whatever a user's function raises
            reason = f"it fails for a step: {type(error).__name__}: {error}"
            raise UserFunctionError("limits", self.on_record, reason) from error

    def _follow(self, sequence: Sequence, token_ids: list[int], now: float, version: Version) -> Progress:
        """Take in a sequence's new tokens, which may end it."""
        sample = self.requests.samples[sequence.seq_id]
        end = sample.take_in(token_ids, now, version)
        if end is not None:
            self._end_early(sequence, *end)
        completion = self.requests.finish(sample) if sequence.finished else None
        request = sequence.request
        prompt = request.prompt_token_ids
        return Progress(request.request_id, request.sample_idx, token_ids, completion, prompt)

    # Between two steps.

    def land(self) -> None:
        """Take in what is in flight, for the next calls of `step` to hand out; follow what has changed."""
        self.is_whole = False
        try:
            with self._tenancy.weights.lock:
                while self._in_flight:
                    record, progress = self._collect(self._in_flight.popleft())
                    self.requests.lay_ready(None, record, progress)
                self._follow_changes(self._tenancy.weights.version)
        except BaseException as error:  # an interrupt included
            self.mend(f"a step failed: {type(error).__name__}: {error}")
            raise
        self.is_whole = True

    def reset_prefix_cache(self) -> bool:
        """Forget what is in the cache, if no request has pages there."""

        def reset() -> bool:
            done = self.scheduler.reset_prefix_cache()
            self._trace.told("reset_prefix_cache")
            return done

        return self._change(reset)

    def hold(self, hold_id: int, token_ids: list[int], salt: str | None) -> None:
        """Keep the full pages of these tokens. Raises JBatchError where the scheduler does; nothing has
        changed then."""
        self.land()
        self.is_whole = False
        try:
            self.scheduler.hold(hold_id, token_ids, salt)
        except JBatchError:
            self.is_whole = True
            raise
        self._trace.close("pages were held from here on, and a trace does not say of what")
        self.is_whole = True

    def let_go(self, hold_id: int) -> None:
        """Hold pages no longer."""
        self._change(lambda: self.scheduler.holdings.let_go(hold_id))

    def read_pages(self, request_id: str, sample_idx: int, read: ReadPages) -> Pages:
        """What `read` makes of the pages of a sample that has not ended, once all is taken in."""
        self.land()
        sequence = self.requests.sequence_of(request_id, sample_idx)
        return read(list(sequence.pages), sequence.num_cached)

    def read_held(self, hold_id: int, read: ReadPages) -> Pages:
        """The same of pages that are held. Raises JBatchError where they are no more."""
        self.land()
        pages = self.scheduler.holdings.held.get(hold_id)
        if pages is None:
            raise JBatchError("prefill: it was closed, or its pages were lost, as where weights change")
        return read(list(pages), len(pages) * self.scheduler.pool.page_size)

    def trace_to(self, path: str | Path) -> TraceWriter:
        """Write to a file what the scheduler is told and decides; a new one, with an empty cache. Raises
        JBatchError where there is anything, and OSError where the file cannot be opened."""
        if self.has_unfinished or self.scheduler.holdings.held:
            raise JBatchError(
                "a trace begins with nothing; unfinished requests: "
                f"{len(self.requests.unfinished)}, held prompts: {len(self.scheduler.holdings.held)}"
            )
        trace = TraceWriter(path, self.scheduler.config)
        self.scheduler = Scheduler(self.scheduler.config, trace.watch(self.scheduler.limits))
        self._trace.close()
        self._trace = trace
        return trace
