"""The engine: schedule, submit, collect, apply, one step ahead of the device."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

from jbatch.engine.intake import Intake, Schedule, ScheduleFields
from jbatch.engine.logprobs import LogprobList, take_in, token_decoder
from jbatch.engine.sample import Sample, empty_output
from jbatch.errors import RequestError
from jbatch.host.metrics import StepRecord, Summary
from jbatch.host.pack import pack
from jbatch.host.plan import StepPlan
from jbatch.host.request import Request
from jbatch.host.request import Sequence as RunningSequence
from jbatch.host.row_data import row_data
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import CompletionOutput, FinishReason, RequestOutput, merge_samples
from jbatch.sampling_params import SamplingParams
from jbatch.seam.runner import Runner
from jbatch.seam.step_input import StepInput
from jbatch.text.tokenizer import Tokenizer

NAP_S = 0.001  # of a step that finds nothing to compute: long enough to cost no processor, and hardly late


class Progress(NamedTuple):
    """New tokens of one sample of a request."""

    request_id: str
    sample_idx: int  # 0 to n - 1
    token_ids: list[int]
    completion: CompletionOutput | None = None  # where it has ended with these
    prompt_token_ids: tuple[int, ...] = ()  # behind which its text stands


class EngineStep(NamedTuple):
    """What one call of `Engine.step` did."""

    plan: StepPlan | None  # of the step that was launched
    record: StepRecord | None  # of the step whose result came in; with overlap, the one before
    progress: list[Progress]
    outputs: list[RequestOutput]  # requests that ended


class _Samples(NamedTuple):
    """The samples of a request that has not ended."""

    running: list[int]  # seq_ids
    ended: list[RequestOutput]  # each of one sample


class _InFlight(NamedTuple):
    plan: StepPlan
    handle: Any
    submitted: float
    host_s: float


class Engine:
    """Continuous batching, driven by hand: `add_request`, then `step` while `has_unfinished`."""

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
        self.summary = Summary()
        self._clock, self._sleep = clock, sleep
        self._depth = 1 if overlap else 0
        self._in_flight: deque[_InFlight] = deque()
        self._samples: dict[int, Sample] = {}  # by seq_id
        self._requests: dict[str, _Samples] = {}  # by request_id
        self._ended: list[RequestOutput] = []  # not handed out yet
        self._request_idx = itertools.count()
        self._last_ready = 0.0
        self._decode = token_decoder(intake.tokenizer)

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
        **schedule: Unpack[ScheduleFields],
    ) -> None:
        """Queue a request.

        Args:
          prompt: text, or token ids.
          index: of the request in its input: with the engine's seed it gives the seed of a request that
            has none. By default requests are counted as they are added.
          schedule: the fields of Schedule, by name: arrival, priority, deadline, predicted_len.

        Raises:
          RequestError: for a request that cannot be served, naming field, value and limit.
        """
        params = params or SamplingParams()
        index = next(self._request_idx) if index is None else index
        if request_id in self._requests:
            raise RequestError("request_id", request_id, "a request of this id has not ended yet")
        compiled = self.runner.samplers
        request = self.intake.request(request_id, prompt, params, index, Schedule(**schedule), compiled)
        if params.max_tokens == 0 and params.prompt_logprobs is None:
            self.scheduler.check(request)
            self._ended.append(empty_output(request, self._clock()))
            return
        sequences = self._add_samples(request)
        for sequence in sequences:
            self._samples[sequence.seq_id] = Sample(sequence, self.tokenizer)
        self._requests[request_id] = _Samples([sequence.seq_id for sequence in sequences], [])

    def _add_samples(self, request: Request) -> list[RunningSequence]:
        """Queue a sequence for each of the n samples, or none where that raises."""
        sequences: list[RunningSequence] = []
        try:
            for sample_idx in range(request.params.n):
                sample = dataclasses.replace(request, sample_idx=sample_idx)
                sequences.append(self.scheduler.add(sample))
        except BaseException:  # a user's policy may raise anything
            for sequence in sequences:
                self.scheduler.finish(sequence, FinishReason.ABORT)
            raise
        return sequences

    def abort(self, request_id: str) -> None:
        """End a request in whatever state it is, with all its samples; its output comes with the next step.
        Unknown ids and requests that have ended are ignored."""
        samples = self._requests.get(request_id)
        for seq_id in tuple(samples.running) if samples is not None else ():
            self.scheduler.finish(self._samples[seq_id].sequence, FinishReason.ABORT)
            self._finish(self._samples[seq_id])

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to do."""
        return bool(self._samples or self._in_flight or self._ended) or self.scheduler.has_unfinished

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def step(self) -> EngineStep:
        """Launch the next step, then take in the result of the one before (of this one, without overlap).

        Where that raises, every request ends with an error, which the next call hands out: tokens are lost,
        so no running row can be trusted. Where all there is to do is to wait (mode "static-full", for a full
        batch), it waits a millisecond and returns: new requests may be added.
        """
        begin = self._clock()
        record: StepRecord | None = None
        progress: list[Progress] = []
        try:
            plan = self.scheduler.schedule(begin)
            if plan is not None:
                handle = self.runner.submit(self._pack(plan))
                self._note_scheduled(plan, begin)
                submitted = self._clock()
                self._in_flight.append(_InFlight(plan, handle, submitted, submitted - begin))
            if self._in_flight and (plan is None or len(self._in_flight) > self._depth):
                record, progress = self._collect(self._in_flight.popleft())
                self.summary = self.summary.with_step(record)
        except BaseException as error:  # an interrupt included
            self._fail_all(f"a step failed: {type(error).__name__}: {error}")
            raise
        outputs, self._ended = self._ended, []
        if plan is None and record is None and not outputs and self._samples:
            self._sleep(NAP_S)
        return EngineStep(plan, record, progress, outputs)

    def _fail_all(self, reason: str) -> None:
        self._in_flight.clear()
        for sample in list(self._samples.values()):
            self.scheduler.finish(sample.sequence, FinishReason.ERROR, error=reason)
            self._finish(sample)

    def _note_scheduled(self, plan: StepPlan, now: float) -> None:
        for chunk in plan.chunks:
            for seq_id in (chunk.seq_id, *(draw.seq_id for draw in chunk.draws)):
                sample = self._samples[seq_id]
                if sample.scheduled_ts is None:
                    sample.scheduled_ts = now

    def _pack(self, plan: StepPlan) -> StepInput:
        """For the least program that is compiled and can do it."""
        sampler, counts = plan.sampler.choose(self.runner.samplers), self.runner.counts_all
        assert sampler is not None, "add_request refuses what no program can do"
        data = tuple(
            part
            for chunk in plan.chunks
            for draw in chunk.draws
            if draw.setup is not None
            for part in row_data(
                self._samples[draw.seq_id].sequence,
                draw.row,
                self.intake.vocab_size,
                sampler,
                counts=counts,
            )
        )
        return pack(plan, self.scheduler.config.shape, sampler, data)

    def _logprobs(self, seq_id: int) -> LogprobList | None:
        sample = self._samples.get(seq_id)
        return None if sample is None else sample.logprobs

    def _collect(self, step: _InFlight) -> tuple[StepRecord, list[Progress]]:
        output, ready = self.runner.collect(step.handle)
        begin = self._clock()
        device_s = max(0.0, ready - max(step.submitted, self._last_ready))
        self._last_ready = ready
        take_in(step.plan, output, self._logprobs)  # first: `apply` may end a sequence
        sequences, record = self.scheduler.apply(step.plan, output)
        progress = [self._follow(sequence, token_ids, begin) for sequence, token_ids in sequences]
        host_s = step.host_s + self._clock() - begin
        return dataclasses.replace(record, host_s=host_s, device_s=device_s), progress

    def _follow(self, sequence: RunningSequence, token_ids: list[int], now: float) -> Progress:
        """Take in a sequence's new tokens, which may end it."""
        sample = self._samples[sequence.seq_id]
        end = sample.take_in(token_ids, now)
        if end is not None:
            self.scheduler.finish(sequence, *end)
        completion = self._finish(sample) if sequence.finished else None
        request = sequence.request
        prompt = request.prompt_token_ids
        return Progress(request.request_id, request.sample_idx, token_ids, completion, prompt)

    def _finish(self, sample: Sample) -> CompletionOutput:
        """The output of a sample that has ended; with it the request's, where it was the last."""
        request_id, seq_id = sample.sequence.request.request_id, sample.sequence.seq_id
        output = sample.output(self._clock(), self._decode)
        samples = self._requests[request_id]
        samples.running.remove(seq_id)
        samples.ended.append(output)
        del self._samples[seq_id]
        if not samples.running:
            del self._requests[request_id]
            self._ended.append(merge_samples(samples.ended))
        return output.outputs[0]
