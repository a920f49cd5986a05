"""Texts piece by piece while they grow: TextDelta, and an iterator of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from jbatch import shown
from jbatch.engine.driver import Driver
from jbatch.engine.prompts import UncheckedRequest
from jbatch.engine.records import Progress
from jbatch.engine.replicas import AnyEngine
from jbatch.errors import RequestError
from jbatch.outputs import CompletionOutput, FinishReason, RequestOutput
from jbatch.sampling_params import SamplingParams
from jbatch.text.detokenizer import Detokenizer
from jbatch.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextDelta:
    """What one step added to one sample of one prompt."""

    prompt_idx: int
    sample_idx: int
    text: str  # may be empty: a part of a character, or what may become a stop string, is held back
    token_ids: list[int]
    finish_reason: FinishReason | None = None  # on the sample's last
    output: RequestOutput | None = None  # on the prompt's last

    def __repr__(self) -> str:
        """The text; not its tokens."""
        tokens, end = shown.count(len(self.token_ids)), ""
        if self.finish_reason is not None:
            end += f", finish_reason={str(self.finish_reason)!r}"
        if self.output is not None:
            end += f", output={self.output!r}"
        place = f"prompt_idx={self.prompt_idx}, sample_idx={self.sample_idx}"
        return f"TextDelta({place}, text={shown.shorten(self.text)!r}, {tokens}{end})"


def stream(
    engine: AnyEngine,
    requests: Sequence[UncheckedRequest],
    declare: Callable[[Iterable[SamplingParams]], Any] = lambda params: None,
    prepare: Callable[[], None] = lambda: None,
) -> Generator[TextDelta]:
    """What the engine's steps give to some requests. When closed it aborts what has not ended.

    Args:
      declare: called once the engine is this stream's, with the parameters of all its requests.
      prepare: called once they are all in the queue.

    Raises:
      JBatchError: while someone else has the engine.
    """
    deltas = Deltas(engine.tokenizer, requests)
    driver = Driver(engine, "stream")
    try:
        driver.begin()
        declare(request.params for request in requests)
        refused = [output for request in requests if (output := driver.add(request)) is not None]
        for output in refused:
            yield from deltas.take_in((), (output,))
        prepare()
        while driver.unfinished:
            step = driver.step()
            yield from deltas.take_in(step.progress, step.outputs)
    finally:  # also where the caller leaves
        driver.left = True
        driver.leave()


@dataclasses.dataclass(slots=True)
class _Text:
    """How much of one sample has been shown."""

    detokenizer: Detokenizer | None  # None: its text cannot be told before its end
    num_chars: int = 0
    num_tokens: int = 0
    ended: bool = False

    def push(self, token_ids: list[int]) -> str:
        """What can be shown with these tokens."""
        self.num_tokens += len(token_ids)
        if self.detokenizer is None:
            return ""
        try:
            for token_id in token_ids:
                self.detokenizer.push(token_id, search=False)  # the engine looks for stop strings
        except RequestError:  # the engine meets it too, at the sample's end
            self.detokenizer = None
            return ""
        new = self.detokenizer.take()
        self.num_chars += len(new)
        return new

    def end(self, completion: CompletionOutput) -> tuple[str, list[int]]:
        """The rest of its text and of its tokens."""
        self.ended = True
        return completion.text[self.num_chars :], completion.token_ids[self.num_tokens :]


class Deltas:
    """Makes the deltas of some requests from what steps give."""

    def __init__(self, tokenizer: Tokenizer | None, requests: Sequence[UncheckedRequest]):
        self._tokenizer = tokenizer
        self._requests = {request.request_id: (idx, request.params) for idx, request in enumerate(requests)}
        self._texts: dict[str, dict[int, _Text]] = {}  # by request_id and sample_idx

    def take_in(self, progress: Iterable[Progress], outputs: Iterable[RequestOutput]) -> list[TextDelta]:
        """The deltas of one step, or of a refusal; what is others' is left out."""
        deltas = []
        for new in progress:
            if new.request_id not in self._requests:
                continue  # someone added it to the engine by hand
            text = self._text(new.request_id, new.sample_idx, new.prompt_token_ids)
            if new.completion is not None:
                deltas.append(self._end(new.request_id, new.completion))
            else:
                prompt_idx, _ = self._requests[new.request_id]
                shown = text.push(new.token_ids)
                deltas.append(TextDelta(prompt_idx, new.sample_idx, shown, new.token_ids))
        for output in outputs:
            if output.request_id in self._requests:
                deltas = self._with_output(deltas, output)
        return deltas

    def _with_output(self, deltas: list[TextDelta], output: RequestOutput) -> list[TextDelta]:
        """And the ends of samples that no step gave (abort, error); the output with the last of all."""
        request_id, (prompt_idx, _) = output.request_id, self._requests[output.request_id]
        ends = [c for c in output.outputs if not self._text(request_id, c.index).ended]
        deltas = [*deltas, *(self._end(request_id, completion) for completion in ends)]
        last = max(at for at, delta in enumerate(deltas) if delta.prompt_idx == prompt_idx)
        deltas[last] = dataclasses.replace(deltas[last], output=output)
        del self._texts[request_id]
        return deltas

    def _end(self, request_id: str, completion: CompletionOutput) -> TextDelta:
        text, token_ids = self._text(request_id, completion.index).end(completion)
        prompt_idx, _ = self._requests[request_id]
        return TextDelta(prompt_idx, completion.index, text, token_ids, completion.finish_reason)

    def _text(self, request_id: str, sample_idx: int, prompt: Sequence[int] = ()) -> _Text:
        """How much of a sample has been shown; `prompt`: its token ids, for a sample that goes on."""
        texts = self._texts.setdefault(request_id, {})
        if sample_idx not in texts:
            texts[sample_idx] = _Text(self._detokenizer(self._requests[request_id][1], prompt))
        return texts[sample_idx]

    def _detokenizer(self, params: SamplingParams, prompt: Sequence[int]) -> Detokenizer | None:
        if self._tokenizer is None or not params.detokenize:
            return None
        return self._tokenizer.detokenizer(
            params.stop or (), after=prompt, skip_special_tokens=params.skip_special_tokens
        )
