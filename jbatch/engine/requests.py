"""An engine's requests: those that have not ended, and what ended and was not handed out yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from jbatch.engine.logprobs import LogprobList, token_decoder
from jbatch.engine.monitor import Monitor
from jbatch.engine.records import EngineStep, Progress
from jbatch.engine.sample import Sample, aborted_output, empty_output, refused_output
from jbatch.errors import RequestError
from jbatch.host.lengths.history import History
from jbatch.host.metrics import StepRecord
from jbatch.host.plan import StepPlan
from jbatch.host.request import Request, Sequence
from jbatch.outputs import CompletionOutput, FinishReason, RequestOutput, merge_samples
from jbatch.text.tokenizer import Tokenizer

Outputs = dict[int, RequestOutput]  # by serial


class Unfinished(NamedTuple):
    """A request that has not ended."""

    serial: int  # of all that were added: ids may come again
    samples: dict[int, RequestOutput | None]  # by seq_id; None: it has not ended


class Aside(NamedTuple):
    """What was not handed out yet, for whoever steps by hand."""

    outputs: Outputs
    steps: list[EngineStep]


class Requests:
    """Requests and their samples, from the queue until a step hands their outputs out.

    Each method that an interrupt cuts off may be called again: no output is lost or comes twice.

    Args:
      history: is told the lengths of those that end by themselves.

    Attributes:
      samples: those that have not ended, by seq_id.
      unfinished: requests by request_id.
      monitor: counts those that end.
    """

    def __init__(self, tokenizer: Tokenizer | None, history: History, clock: Callable[[], float]):
        self.samples: dict[int, Sample] = {}
        self.unfinished: dict[str, Unfinished] = {}
        self.monitor = Monitor()
        self._tokenizer, self._history, self._clock = tokenizer, history, clock
        self._decode = token_decoder(tokenizer)
        self._ended: Outputs = {}  # not handed out yet
        self._steps: list[EngineStep] = []  # the same

    def begin(self, serial: int, request: Request, sequences: Iterable[Sequence]) -> None:
        """Follow the samples of a request that is queued. Raises what its tokenizer raises."""
        samples = {sequence.seq_id: Sample(sequence, self._tokenizer) for sequence in sequences}
        self.samples |= samples
        self.unfinished[request.request_id] = Unfinished(serial, dict.fromkeys(samples))

    def finish(self, sample: Sample) -> CompletionOutput:
        """The output of a sample that has ended; with it the request's, where it was the last."""
        request_id, seq_id = sample.sequence.request.request_id, sample.sequence.seq_id
        output = sample.output(self._clock(), self._decode)
        completion = output.outputs[0]
        if completion.token_ids and completion.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._history.add(len(output.prompt_token_ids), len(completion.token_ids))
        unfinished = self.unfinished.get(request_id)
        if unfinished is not None and seq_id in unfinished.samples:
            unfinished.samples[seq_id] = output
            ended = [each for each in unfinished.samples.values() if each is not None]
            if len(ended) == len(unfinished.samples):
                self._end(unfinished.serial, sample.sequence.request, merge_samples(ended))
                self.unfinished.pop(request_id, None)
        self.samples.pop(seq_id, None)
        return completion

    def end_empty(self, serial: int, request: Request) -> None:
        """End a request for no tokens, which was not queued."""
        self._end(serial, request, empty_output(request, self._clock()))

    def end_refused(self, serial: int, request: Request, reason: str) -> None:
        """End a request that cannot be queued."""
        self._end(serial, request, refused_output(request, reason, self._clock()))

    def end_unqueued(self, serial: int, request: Request) -> None:
        """End a request that was aborted before it was queued."""
        self._end(serial, request, aborted_output(request, self._clock()))

    def _end(self, serial: int, request: Request, output: RequestOutput) -> None:
        """Lay a request's output ready. Where it was laid there before, it has been counted."""
        if serial not in self._ended:
            self._ended[serial] = output
            self.monitor.request_ended(request, output)

    def sequence_of(self, request_id: str, sample_idx: int) -> Sequence:
        """One that has not ended. Raises RequestError where there is none."""
        unfinished = self.unfinished.get(request_id)
        for seq_id in () if unfinished is None else unfinished.samples:
            sample = self.samples.get(seq_id)
            if sample is not None and sample.sequence.request.sample_idx == sample_idx:
                return sample.sequence
        raise RequestError(
            "request_id", request_id, f"there is no such request, or sample {sample_idx} of it has ended"
        )

    def logprobs_of(self, seq_id: int) -> LogprobList | None:
        """Where a sample's log-probabilities go, if it wants any and has not ended."""
        sample = self.samples.get(seq_id)
        return None if sample is None else sample.logprobs

    # What a step hands out.

    @property
    def has_ended(self) -> bool:
        """Whether requests have ended since a step was laid ready."""
        return bool(self._ended)

    @property
    def has_steps(self) -> bool:
        """Whether steps are laid ready."""
        return bool(self._steps)

    def lay_ready(self, plan: StepPlan | None, record: StepRecord | None, progress: list[Progress]) -> None:
        """Have a step handed out, with all that has ended."""
        steps = [*self._steps, EngineStep(plan, record, progress, list(self._ended.values()))]
        # At once: an interrupt may come with any call, and nothing that ended is to be lost.
        self._ended, self._steps = {}, steps

    def hand_out(self) -> EngineStep:
        """The first step that is laid ready."""
        step, self._steps = self._steps[0], self._steps[1:]
        return step

    def set_aside(self) -> Aside:
        """Take what was not handed out yet; to be given back."""
        aside = Aside(self._ended, self._steps)
        self._ended, self._steps = {}, []
        return aside

    def give_back(self, aside: Aside) -> None:
        """Hand out these with the next steps, too."""
        self._ended, self._steps = aside.outputs | self._ended, [*aside.steps, *self._steps]
