"""The engine: schedule, run, apply, one step ahead of the device."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jbatch.engine.check_params import bad_word_ids, check_params
from jbatch.engine.logprobs import Decode, LogprobList, logprob_list, take_in, token_decoder
from jbatch.engine.sample import Live, empty_output, sample_output
from jbatch.errors import RequestError
from jbatch.host.metrics import StepRecord, Summary
from jbatch.host.plan import StepInput, StepOutput, StepPlan, pack
from jbatch.host.request import Request
from jbatch.host.request import Sequence as RunningSequence
from jbatch.host.row_data import row_data
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import CompletionOutput, FinishReason, RequestOutput, merge_samples
from jbatch.sampling_params import MAX_STOP_IDS, Sampler, SamplingParams
from jbatch.text.tokenizer import Detokenizer, Tokenizer


class RunnerLike(Protocol):
    """What the engine needs of a runner."""

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The ways of drawing tokens that are compiled."""

    def submit(self, step: StepInput) -> Any: ...

    def collect(self, handle: Any) -> tuple[StepOutput, float]: ...


class Progress(NamedTuple):
    """New tokens of one sample of a request."""

    request_id: str
    sample_idx: int  # 0 to n - 1
    token_ids: list[int]
    completion: CompletionOutput | None = None  # where it has ended with these


class EngineStep(NamedTuple):
    """What one call of `Engine.step` did."""

    plan: StepPlan | None  # of the step that was launched
    record: StepRecord | None  # of the step whose result came in; with overlap, the one before
    progress: list[Progress]
    outputs: list[RequestOutput]  # requests that ended


class _Samples(NamedTuple):
    """The samples of a request that has not ended."""

    live: list[int]  # seq_ids
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
        runner: RunnerLike,
        *,
        vocab_size: int,
        eos_token_ids: Iterable[int] = (),
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
        overlap: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.scheduler, self.runner, self.tokenizer = scheduler, runner, tokenizer
        self.summary = Summary()
        self._vocab_size, self._seed, self._clock = vocab_size, seed, clock
        self._eos_token_ids = tuple(sorted(eos_token_ids))
        self._depth = 1 if overlap else 0
        self._in_flight: deque[_InFlight] = deque()
        self._live: dict[int, Live] = {}  # by seq_id
        self._requests: dict[str, _Samples] = {}  # by request_id
        self._ended: list[RequestOutput] = []  # not handed out yet
        self._request_idx = itertools.count()
        self._last_ready = 0.0
        self._decode = token_decoder(tokenizer)

    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        index: int | None = None,
        arrival: float | None = None,
        priority: int = 0,
        deadline: float | None = None,
        predicted_len: int | None = None,
    ) -> None:
        """Queue a request.

        Args:
          prompt: text, or token ids.
          index: of the request in its input: with the engine's seed it gives the seed of a request that
            has none. By default requests are counted as they are added.
          arrival, deadline: seconds on the engine's clock; arrival is now by default.
          priority: for policy "priority"; lower runs first.
          predicted_len: output tokens, for policies "sjf" and "ljf".

        Raises:
          RequestError: for a request that cannot be served, naming field, value and limit.
        """
        params = params or SamplingParams()
        index = next(self._request_idx) if index is None else index
        if request_id in self._requests:
            raise RequestError("request_id", request_id, "a request of this id has not ended yet")
        check_params(params, self._vocab_size, self.runner.samplers)
        token_ids = self._token_ids(prompt)
        request = Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            max_tokens=self._max_tokens(params, len(token_ids)),
            stop_ids=self._stop_ids(params),
            seed=derive_seed(self._seed, index) if params.seed is None else params.seed,
            arrival=self._clock() if arrival is None else arrival,
            priority=priority,
            deadline=deadline,
            predicted_len=predicted_len,
            prompt=prompt if isinstance(prompt, str) else None,
            bad_word_ids=bad_word_ids(params, self.tokenizer),
        )
        if params.max_tokens == 0 and params.prompt_logprobs is None:
            self.scheduler.check(request)
            self._ended.append(empty_output(request, self._clock()))
            return
        stop_finders = [self._stop_finder(params) for _ in range(params.n)]
        sequences = self._add_samples(request)
        for sequence, stop_finder in zip(sequences, stop_finders, strict=True):
            self._live[sequence.seq_id] = Live(sequence, stop_finder, logprob_list(sequence.request))
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
        for seq_id in tuple(samples.live) if samples is not None else ():
            self.scheduler.finish(self._live[seq_id].sequence, FinishReason.ABORT)
            self._finish(self._live[seq_id])

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to do."""
        return bool(self._live or self._in_flight or self._ended) or self.scheduler.has_unfinished

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def step(self) -> EngineStep:
        """Launch the next step, then take in the result of the one before (of this one, without overlap).

        Where that raises, every request ends with an error, which the next call hands out: tokens are lost,
        so no running row can be trusted.
        """
        try:
            return self._step()
        except BaseException as error:  # an interrupt included
            self._in_flight.clear()
            for live in list(self._live.values()):
                reason = f"a step failed: {type(error).__name__}: {error}"
                self.scheduler.finish(live.sequence, FinishReason.ERROR, error=reason)
                self._finish(live)
            raise

    def _step(self) -> EngineStep:
        begin = self._clock()
        plan = self.scheduler.schedule(begin)
        if plan is not None:
            self._launch(plan, begin)
        record: StepRecord | None = None
        progress: list[Progress] = []
        if self._in_flight and (plan is None or len(self._in_flight) > self._depth):
            record, progress = self._collect(self._in_flight.popleft())
            self.summary = self.summary.with_step(record)
        outputs, self._ended = self._ended, []
        return EngineStep(plan, record, progress, outputs)

    def _launch(self, plan: StepPlan, begin: float) -> None:
        handle = self.runner.submit(self._pack(plan))
        if plan.chunks:
            for seq_id in plan.seq_ids:
                live = self._live[seq_id]
                if live.scheduled_ts is None:
                    live.scheduled_ts = begin
        submitted = self._clock()
        self._in_flight.append(_InFlight(plan, handle, submitted, submitted - begin))

    def _pack(self, plan: StepPlan) -> StepInput:
        """For the least program that is compiled and can do it."""
        config = self.scheduler.config
        sampler = plan.sampler.choose(self.runner.samplers)
        rows = []
        for seq_id, row, chunk in zip(plan.seq_ids, plan.rows, plan.chunks, strict=False):
            if chunk.setup is not None and sampler == Sampler.EXTENDED:
                rows.append(row_data(self._live[seq_id].sequence, row, self._vocab_size))
        data = tuple(row for row in rows if row is not None)
        return pack(plan, config.num_rows, config.page_size, sampler, data)

    def _logprobs(self, seq_id: int) -> LogprobList | None:
        live = self._live.get(seq_id)
        return None if live is None else live.logprobs

    def _collect(self, step: _InFlight) -> tuple[StepRecord, list[Progress]]:
        output, ready = self.runner.collect(step.handle)
        begin = self._clock()
        device_s = max(0.0, ready - max(step.submitted, self._last_ready))
        self._last_ready = ready
        take_in(step.plan, output, self._logprobs)  # first: `apply` may end a sequence
        sequences, record = self.scheduler.apply(step.plan, output)
        progress = []
        for sequence, token_ids in sequences:
            live = self._live[sequence.seq_id]
            if token_ids:
                live.last_token_ts = begin
                if live.first_token_ts is None:
                    live.first_token_ts = begin
            if live.stop_finder is not None:
                self._find_stop(live, token_ids)
            completion = self._finish(live) if sequence.finished else None
            request = sequence.request
            progress.append(Progress(request.request_id, request.sample_idx, token_ids, completion))
        host_s = step.host_s + self._clock() - begin
        return dataclasses.replace(record, host_s=host_s, device_s=device_s), progress

    def _find_stop(self, live: Live, token_ids: list[int]) -> None:
        """End a sequence whose text now holds a stop string, also where it has just ended by its length."""
        sequence, finder = live.sequence, live.stop_finder
        if sequence.finish_reason in (FinishReason.STOP, FinishReason.ERROR) or finder is None:
            return
        try:
            first = len(sequence.output_token_ids) - len(token_ids) + 1
            for number, token_id in enumerate(token_ids, start=first):
                if finder.push(token_id, search=number > sequence.request.params.min_tokens):
                    self.scheduler.finish(sequence, FinishReason.STOP, stop_reason=finder.found)
                    break
        except RequestError as error:  # this request's text alone
            live.error = str(error)
            self.scheduler.finish(sequence, FinishReason.ERROR)

    def _finish(self, live: Live) -> CompletionOutput:
        try:
            text = self._text(live)
        except RequestError as error:  # this request's text alone
            text, live.error = "", str(error)
        request_id, seq_id = live.sequence.request.request_id, live.sequence.seq_id
        samples = self._requests[request_id]
        samples.live.remove(seq_id)
        output = sample_output(live, text, self._clock(), self._decoder(live))
        samples.ended.append(output)
        del self._live[seq_id]
        if not samples.live:
            del self._requests[request_id]
            self._ended.append(merge_samples(samples.ended))
        return output.outputs[0]

    def _decoder(self, live: Live) -> Decode:
        return self._decode if live.sequence.request.params.detokenize else lambda token_id: None

    def _text(self, live: Live) -> str:
        sequence, params = live.sequence, live.sequence.request.params
        if live.stop_finder is not None and live.stop_finder.found is not None:
            return live.stop_finder.text(include_stop=params.include_stop_str_in_output)
        if self.tokenizer is None or not params.detokenize:
            return ""
        token_ids = sequence.output_token_ids
        if sequence.finish_reason == FinishReason.STOP and not params.include_stop_str_in_output:
            token_ids = token_ids[:-1]
        return self.tokenizer.decode(token_ids, skip_special_tokens=params.skip_special_tokens)

    def _token_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("prompt", prompt, "must not be empty", code="empty_prompt")
            if self.tokenizer is None:
                raise RequestError("prompt", prompt, "this model has no tokenizer: give prompt_token_ids")
            return tuple(self.tokenizer.encode(prompt))
        if not isinstance(prompt, (list, tuple, np.ndarray)):
            raise RequestError("prompt", prompt, "must be text or a list of token ids")
        for token_id in prompt:
            if not isinstance(token_id, (int, np.integer)) or isinstance(token_id, bool):
                raise RequestError("prompt_token_ids", token_id, "must be integers")
            if not 0 <= token_id < self._vocab_size:
                raise RequestError(
                    "prompt_token_ids", token_id, f"must be from 0 to {self._vocab_size - 1}, the vocabulary"
                )
        return tuple(map(int, prompt))

    def _max_tokens(self, params: SamplingParams, prompt_len: int) -> int:
        if params.max_tokens is not None:
            return params.max_tokens
        room = self.scheduler.max_seq_len - prompt_len
        return max(1, room)  # a prompt that fills the context is refused by the scheduler

    def _stop_ids(self, params: SamplingParams) -> tuple[int, ...]:
        named = params.stop_token_ids or ()
        eos = () if params.ignore_eos else self._eos_token_ids
        stop_ids = tuple(dict.fromkeys((*eos, *named)))
        if len(stop_ids) > MAX_STOP_IDS:
            raise RequestError(
                "stop_token_ids",
                list(named),
                f"with the model's {len(eos)} end-of-sequence ids there may be at most {MAX_STOP_IDS}",
            )
        return stop_ids

    def _stop_finder(self, params: SamplingParams) -> Detokenizer | None:
        if not params.stop:
            return None
        if self.tokenizer is None:
            raise RequestError("stop", list(params.stop), "this model has no tokenizer: use stop_token_ids")
        return self.tokenizer.detokenizer(params.stop, skip_special_tokens=params.skip_special_tokens)


def derive_seed(engine_seed: int, index: int) -> int:
    """The seed of request `index`, uint32: never of its arrival, so that a resumed job draws the same."""
    return int(np.random.SeedSequence([engine_seed, index]).generate_state(1)[0])
