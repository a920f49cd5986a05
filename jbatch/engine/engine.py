"""The engine: schedule, submit, collect, apply, one step ahead of the device."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from jbatch.config import UpdateMode, plain
from jbatch.engine.forked import forked
from jbatch.engine.intake import Intake, Schedule, ScheduleFields
from jbatch.engine.logprobs import LogprobList, take_in, token_decoder
from jbatch.engine.monitor import Monitor
from jbatch.engine.packing import note_scheduled, pack_step
from jbatch.engine.records import (
    Aside,
    EngineStep,
    InFlight,
    LetGo,
    New,
    Note,
    Outputs,
    Progress,
    Unfinished,
    is_queued,
)
from jbatch.engine.sample import Sample, aborted_output, empty_output, refused_output
from jbatch.engine.trace import NoTrace, Times, TraceWriter
from jbatch.engine.turn import DRAIN, STEP, Turn, is_running
from jbatch.errors import JBatchError, RequestError, UserFunctionError
from jbatch.host.metrics import StepRecord, Summary
from jbatch.host.plan import StepPlan
from jbatch.host.request import Request
from jbatch.host.request import Sequence as RunningSequence
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import CompletionOutput, FinishReason, RequestOutput, merge_samples
from jbatch.sampling_params import SamplingParams
from jbatch.seam.loaded import Version
from jbatch.seam.runner import Runner
from jbatch.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # it needs this module
    from jbatch.engine.driver import Driver

Result = TypeVar("Result")
Pages = Any  # an array of keys and values, which the engine does not look into
ReadPages = Callable[[list[int], int], Pages]  # of pages, in order, and the tokens that they hold
NAP_S = 0.001  # of a step that finds nothing to compute: long enough to cost no processor, and hardly late


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
      monitor: what it counts for `LLM.get_metrics`.
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
    ):
        self.scheduler, self.runner, self.intake = scheduler, runner, intake
        self.summary, self.monitor = Summary(), Monitor()
        self._trace = NoTrace()
        self._clock, self._sleep = clock, sleep
        self._depth = 1 if overlap else 0
        self._in_flight: deque[InFlight] = deque()
        self._samples: dict[int, Sample] = {}  # by seq_id
        self._requests: dict[str, Unfinished] = {}  # by request_id
        self._ended: Outputs = {}  # not handed out yet
        self._done: list[EngineStep] = []  # steps that were not handed out yet
        self._whole = True  # but while something changes, and from where that was cut off
        self._request_idx, self._serials = itertools.count(), itertools.count()
        self._last_ready = 0.0
        self._decode = token_decoder(intake.tokenizer)
        self.tenancy = runner.tenancy
        self._version = self.tenancy.weights.version  # that all rows and pages are of
        self._updates = threading.RLock()  # of weights: one at a time
        self._updating: FrameType | None = None  # of an update that no request spans
        self._times_lost = self.tenancy.times_lost
        self.driver: Driver | None = None
        self._turn = Turn()
        self._later: deque[Note] = deque()

    @property
    def clock(self) -> Callable[[], float]:
        """What it tells the time by, in seconds."""
        return self._clock

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What makes texts of tokens, and tokens of texts."""
        return self.intake.tokenizer

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
    ) -> None:
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

        Raises:
          RequestError: for a request that cannot be served, naming field, value and limit; also where the
            policy fails for it.
          JBatchError: while another has the device, see above.
        """
        self._check_caller()
        self.tidy()
        params = params or SamplingParams()
        index = next(self._request_idx) if index is None else plain(index)
        compiled = self.runner.samplers
        request = self.intake.request(request_id, prompt, params, index, Schedule(**schedule), compiled)
        known_by = index % 2**31 if request_idx is None else plain(request_idx)
        request = dataclasses.replace(
            request, request_idx=known_by, first_scored=plain(first_scored), cache_salt=cache_salt
        )
        self.scheduler.check(request)
        new = New(next(self._serials), request, self.scheduler.key_of(request))
        with self.tenancy.lock:
            self._check_caller()  # again: someone may have come
            self.tenancy.take(self)
            # It may go from the one to the other meanwhile, so they are looked at in this order.
            if is_queued(request_id, tuple(self._later)) or request_id in self._requests:
                raise RequestError("request_id", request_id, "a request of this id has not ended yet")
            self._later.append(new)
        self.tidy()

    def abort(self, request_id: str) -> None:
        """End a request in whatever state it is, with all its samples; its output comes with the next step.
        Unknown ids and requests that have ended are ignored."""
        self.tenancy.check_process()
        self._later.append(request_id)
        self.tidy()

    def tidy(self) -> bool:
        """Mend what was cut off; queue and abort what was asked for. False where a step is under way, in
        another thread or around this call: then the next step does it."""
        self.tenancy.check_process()
        if not self._turn.take("add_request or abort", sys._getframe()):
            return False
        try:
            self._catch_up()
        finally:
            self._turn.leave()
        return True

    def set_aside(self) -> Aside:
        """Take what no step has handed out yet; to be given back."""
        aside = Aside(self._ended, self._done)
        self._ended, self._done = {}, []
        return aside

    def give_back(self, aside: Aside) -> None:
        """Hand out these with the next steps, too."""
        self._ended, self._done = aside.outputs | self._ended, [*aside.steps, *self._done]

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
        if self._turn.is_mine:
            raise JBatchError("weights cannot change within a step of the engine: do it between two steps")
        with self._updates:
            try:
                self.tidy()  # what was added before is not held back
                if mode != "retract":
                    self._updating = sys._getframe()
                if mode == "wait":
                    self._drain(sys._getframe())
                elif mode == "abort":
                    for request_id in self._unfinished_ids():
                        self.abort(request_id)
                replace()
            finally:
                self._updating = None

    def _drain(self, frame: FrameType) -> None:
        """Step until all requests have ended, but those that are held back; `frame` takes the turns."""
        while self._requests:
            if not self._turn.take(DRAIN, frame):
                self._sleep(NAP_S)  # the thread that steps does it
                continue
            try:
                self._catch_up()
                self._step()
            finally:
                self._turn.leave()

    @property
    def _holds_back(self) -> bool:
        """Whether new requests wait for other weights."""
        return self._updating is not None and is_running(self._updating)

    def _unfinished_ids(self) -> list[str]:
        queued = [note.request.request_id for note in tuple(self._later) if isinstance(note, New)]
        return [*tuple(self._requests), *queued]

    def _check_caller(self) -> None:
        """Raise JBatchError in a forked process, and while someone else drives."""
        self.tenancy.check_process()
        if self.driver is not None:
            self.driver.check_caller()

    def _catch_up(self) -> None:
        """Do what was left to do. An interrupt may come with any line: so a note is dropped once it has been
        followed, and following it again does nothing."""
        self.mend()
        held_back: dict[str, New] = {}
        for note in tuple(self._later):
            if isinstance(note, New):
                if self._holds_back:
                    held_back[note.request.request_id] = note
                    continue
                self._add(note)
            elif isinstance(note, LetGo):
                self._whole = False
                self.scheduler.holdings.let_go(note.hold_id)
                self._whole = True
            elif (new := held_back.pop(note, None)) is not None:
                self._end(new.serial, new.request, aborted_output(new.request, self._clock()))
                self._later.remove(new)
            else:
                self._abort(note)
            self._later.remove(note)

    def _add(self, new: New) -> None:
        request = new.request
        if request.request_id in self._requests:
            return
        if request.params.max_tokens == 0 and request.params.prompt_logprobs is None:
            self._end(new.serial, request, empty_output(request, self._clock()))
            return
        self._whole = False
        sequences: list[RunningSequence] = []
        try:
            for sample_idx in range(request.params.n):
                asked = dataclasses.replace(request, sample_idx=sample_idx)
                self._trace.added(self.scheduler.add(asked, new.key, sequences))
            samples = {sequence.seq_id: Sample(sequence, self.tokenizer) for sequence in sequences}
        except Exception as error:  # a tokenizer's, of this request alone
            for sequence in sequences:
                self._end_early(sequence, FinishReason.ABORT)
            self._end(new.serial, request, refused_output(request, str(error), self._clock()))
        else:
            self._samples |= samples
            self._requests[request.request_id] = Unfinished(new.serial, dict.fromkeys(samples))
        self._whole = True

    def _abort(self, request_id: str) -> None:
        unfinished = self._requests.get(request_id)
        if unfinished is None:
            return
        self._whole = False
        for seq_id, output in tuple(unfinished.samples.items()):
            if output is None:
                self._end_early(self._samples[seq_id].sequence, FinishReason.ABORT)
                self._finish(self._samples[seq_id])
        self._whole = True

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to do."""
        return (
            bool(self._samples or self._in_flight or self._ended or self._later or self._done)
            or self.scheduler.has_unfinished
            or self._holds_back  # its steps have not been laid ready
        )

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._requests) + sum([isinstance(note, New) for note in tuple(self._later)])

    def step(self) -> EngineStep:
        """Launch the next step, then take in the result of the one before (of this one, without overlap).

        Where that raises, every request ends with an error, which the next call hands out: tokens are lost,
        so no running row can be trusted. Where all there is to do is to wait (mode "static-full", for a full
        batch), it waits a millisecond and returns: new requests may be added.

        Raises:
          JBatchError: while another step is under way, in another thread or around this call.
          UserFunctionError: where the limits' function fails. All requests are as they were.
        """
        self._check_caller()
        if not self._turn.take(STEP, sys._getframe()):
            raise JBatchError(
                "a step of this engine is under way, in another thread or around this call: one at a time"
            )
        try:
            self._catch_up()
            if not self._done:
                self._step()
            step, self._done = self._done[0], self._done[1:]
            return step
        finally:
            self._turn.leave()

    def _step(self) -> None:
        """The next step, to be handed out."""
        begin = self._clock()
        self._whole = False
        record: StepRecord | None = None
        progress: list[Progress] = []
        try:
            with self.tenancy.weights.lock:
                plan = self._launch(begin)
            if self._in_flight and (plan is None or len(self._in_flight) > self._depth):
                record, progress = self._collect(self._in_flight.popleft())
        except UserFunctionError:
            self._whole = True  # it is the first thing that a step does
            raise
        except BaseException as error:  # an interrupt included
            self.mend(f"a step failed: {type(error).__name__}: {error}")
            raise
        self._whole = True
        if plan is None and record is None and not self._ended and (self._samples or self._holds_back):
            self._sleep(NAP_S)
        done = [*self._done, EngineStep(plan, record, progress, list(self._ended.values()))]
        # At once: an interrupt may come with any call, and nothing that ended is to be lost.
        self._ended, self._done = {}, done

    def _launch(self, begin: float) -> StepPlan | None:
        """Plan the next step and submit it. Where the weights have changed, what is in flight comes first,
        and then all that runs begins anew."""
        version = self.tenancy.weights.version
        if version is not self._version and self._in_flight:
            return None
        self._follow_changes(version)
        plan = self.scheduler.schedule(begin)
        self._trace.planned(begin, plan)
        if plan is not None:
            shape, vocab_size = self.scheduler.config.shape, self.intake.vocab_size
            handle = self.runner.submit(pack_step(plan, shape, vocab_size, self._samples, self.runner))
            note_scheduled(plan, self._samples, begin)
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
        times_lost = self.tenancy.times_lost
        if self._times_lost != times_lost:
            self.scheduler.weights_changed()
            self._trace.told("weights_changed")
            self._times_lost = times_lost

    def reset_prefix_cache(self) -> bool:
        """Forget what is in the cache. False, and nothing is forgotten, while requests have pages there.

        Raises JBatchError while a step is under way, in another thread or around this call."""

        def reset() -> bool:
            self._whole = False
            done = self.scheduler.reset_prefix_cache()
            self._trace.told("reset_prefix_cache")
            self._whole = True
            return done

        return self._between_steps("reset_prefix_cache", reset)

    def _between_steps(self, name: str, do: Callable[[], Result]) -> Result:
        """Do something that no step may come into."""
        self._check_caller()
        if not self._turn.take(name, sys._getframe()):
            raise JBatchError("a step of this engine is under way, in another thread or around this call")
        try:
            self._catch_up()
            return do()
        finally:
            self._turn.leave()

    # Pages that others may have, too.

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
            "fork", lambda: forked(self._unfinished(request_id, sample_idx), seed)
        )
        self.add_request(fork_id, prompt, params, request_idx=request_idx, cache_salt=salt, **schedule)

    def read_pages(self, request_id: str, read: ReadPages, sample_idx: int = 0) -> Pages:
        """What `read` makes of the pages of a request that has not ended, and of the number of its tokens
        that they hold. Steps in flight are waited for; the next calls of `step` hand out what they gave."""

        def pages_of() -> Pages:
            self._land()
            sequence = self._unfinished(request_id, sample_idx)
            return read(list(sequence.pages), sequence.num_cached)

        return self._between_steps("kv", pages_of)

    def read_held(self, hold_id: int, read: ReadPages) -> Pages:
        """The same of pages that are held. Raises JBatchError where they are no more."""

        def pages_of() -> Pages:
            self._land()
            pages = self.scheduler.holdings.held.get(hold_id)
            if pages is None:
                raise JBatchError("prefill: it was closed, or its pages were lost, as where weights change")
            return read(list(pages), len(pages) * self.scheduler.pool.page_size)

        return self._between_steps("kv", pages_of)

    def hold(self, token_ids: list[int], salt: str | None) -> int:
        """Keep the full pages of these tokens, which have just been computed, until `let_go` of what this
        gives.

        Raises:
          ConfigError: where the pool has no room for that, or nothing is cached.
          JBatchError: while requests are under way.
        """

        def hold() -> int:
            self._land()
            hold_id = next(self._serials)
            self._whole = False
            try:
                self.scheduler.hold(hold_id, token_ids, salt)
            except JBatchError:  # nothing has changed
                self._whole = True
                raise
            self._trace.close("pages were held from here on, and a trace does not say of what")
            self._whole = True
            return hold_id

        return self._between_steps("prefill", hold)

    def let_go(self, hold_id: int) -> None:
        """Hold pages no longer; during a step this is done before the next one. Idempotent."""
        if self.tenancy.forked:
            return
        self._later.append(LetGo(hold_id))
        self.tidy()

    def _unfinished(self, request_id: str, sample_idx: int) -> RunningSequence:
        unfinished = self._requests.get(request_id)
        for seq_id in () if unfinished is None else unfinished.samples:
            sample = self._samples.get(seq_id)
            if sample is not None and sample.sequence.request.sample_idx == sample_idx:
                return sample.sequence
        raise RequestError(
            "request_id", request_id, f"there is no such request, or sample {sample_idx} of it has ended"
        )

    def _land(self) -> None:
        """Take in what is in flight, for the next calls of `step` to hand out; follow what has changed."""
        self._whole = False
        try:
            with self.tenancy.weights.lock:
                while self._in_flight:
                    record, progress = self._collect(self._in_flight.popleft())
                    done = [*self._done, EngineStep(None, record, progress, list(self._ended.values()))]
                    self._ended, self._done = {}, done
                self._follow_changes(self.tenancy.weights.version)
        except BaseException as error:  # an interrupt included
            self.mend(f"a step failed: {type(error).__name__}: {error}")
            raise
        self._whole = True

    def trace_to(self, path: str | Path) -> TraceWriter:
        """From now on, write a line for each decision of the scheduler to a file, for `jbatch replay`, until
        its `close`. The prefix cache is empty then.

        Raises:
          JBatchError: while requests are unfinished or prompts held, and while someone else drives.
          OSError: where the file cannot be opened.
        """

        def begin() -> TraceWriter:
            if self._samples or self._in_flight or self.scheduler.holdings.held:
                raise JBatchError(
                    f"a trace begins with nothing: {self.num_unfinished} requests are unfinished, and "
                    f"{len(self.scheduler.holdings.held)} prompts are held"
                )
            trace = TraceWriter(path, self.scheduler.config)
            self.scheduler = Scheduler(self.scheduler.config, trace.watch(self.scheduler.limits))
            self._trace.close()
            self._trace = trace
            return trace

        return self._between_steps("trace_to", begin)

    def mend(self, reason: str = "it was interrupted") -> None:
        """Where a change was cut off, end every request with `reason` as its error, and begin anew: what the
        scheduler holds may be half of it. Every method begins with this, in case that an interrupt cut it
        off, too; whatever it did until then, it may do again. Only for who is inside."""
        if self._whole:
            return
        if self._later and isinstance(note := self._later[0], New):
            known = self._requests.get(note.request.request_id)
            if known is not None and known.serial == note.serial:  # it was added, and ends now
                self._later.popleft()
        self._in_flight.clear()
        self._trace.close("the engine was cut off here, and began anew")
        self.scheduler = self.scheduler.renewed(error=reason)
        for sample in list(self._samples.values()):
            self._finish(sample)
        self._whole = True

    def _logprobs(self, seq_id: int) -> LogprobList | None:
        sample = self._samples.get(seq_id)
        return None if sample is None else sample.logprobs

    def _collect(self, step: InFlight) -> tuple[StepRecord, list[Progress]]:
        output, ready = self.runner.collect(step.handle)
        begin = self._clock()
        device_s = max(0.0, ready - max(step.submitted, self._last_ready))
        self._last_ready = ready
        take_in(step.plan, output, self._logprobs)  # first: `apply` may end a sequence
        sequences, record = self.scheduler.apply(step.plan, output)
        times = Times(step.submitted, ready, begin)
        self._trace.landed(step.plan, output, record, times, sequences)
        progress = [self._follow(*new, begin, step.version) for new in sequences]
        host_s = step.host_s + self._clock() - begin
        record = dataclasses.replace(record, host_s=host_s, device_s=device_s)
        self.summary = self.summary.with_step(record)
        self.monitor.step_ended(record, self._clock())
        return record, progress

    def _follow(
        self, sequence: RunningSequence, token_ids: list[int], now: float, version: Version
    ) -> Progress:
        """Take in a sequence's new tokens, which may end it."""
        sample = self._samples[sequence.seq_id]
        end = sample.take_in(token_ids, now, version)
        if end is not None:
            self._end_early(sequence, *end)
        completion = self._finish(sample) if sequence.finished else None
        request = sequence.request
        prompt = request.prompt_token_ids
        return Progress(request.request_id, request.sample_idx, token_ids, completion, prompt)

    def _finish(self, sample: Sample) -> CompletionOutput:
        """The output of a sample that has ended; with it the request's, where it was the last. Where this was
        cut off it is called again."""
        request_id, seq_id = sample.sequence.request.request_id, sample.sequence.seq_id
        output = sample.output(self._clock(), self._decode)
        completion = output.outputs[0]
        if completion.token_ids and completion.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.intake.history.add(len(output.prompt_token_ids), len(completion.token_ids))
        unfinished = self._requests.get(request_id)
        if unfinished is not None and seq_id in unfinished.samples:
            unfinished.samples[seq_id] = output
            ended = [each for each in unfinished.samples.values() if each is not None]
            if len(ended) == len(unfinished.samples):
                self._end(unfinished.serial, sample.sequence.request, merge_samples(ended))
                self._requests.pop(request_id, None)
        self._samples.pop(seq_id, None)
        return completion

    def _end_early(
        self, sequence: RunningSequence, reason: FinishReason, stop_reason: str | None = None
    ) -> None:
        """End a sequence that the scheduler would go on with."""
        self.scheduler.finish(sequence, reason, stop_reason)
        self._trace.ended(sequence, reason)

    def _end(self, serial: int, request: Request, output: RequestOutput) -> None:
        """Lay a request's output ready. Where it was laid there before, it has been counted."""
        if serial not in self._ended:
            self._ended[serial] = output
            self.monitor.request_ended(request, output)
