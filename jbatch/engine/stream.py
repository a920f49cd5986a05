"""Texts piece by piece while they grow: TextDelta, and iterators of them, plain and async."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from jbatch.engine.engine import Engine, EngineStep
from jbatch.engine.prompts import UncheckedRequest, check_idle
from jbatch.errors import RequestError
from jbatch.outputs import CompletionOutput, FinishReason, RequestOutput
from jbatch.sampling_params import SamplingParams
from jbatch.text.tokenizer import Detokenizer, Tokenizer


@dataclasses.dataclass(frozen=True)
class TextDelta:
    """What one step added to one sample of one prompt."""

    prompt_idx: int
    sample_idx: int
    text: str  # may be empty: a part of a character, or what may become a stop string, is held back
    token_ids: list[int]
    finish_reason: FinishReason | None = None  # on the sample's last
    output: RequestOutput | None = None  # on the prompt's last


def stream_steps(
    engine: Engine, requests: Sequence[UncheckedRequest], prepare: Callable[[], None] = lambda: None
) -> Generator[list[TextDelta]]:
    """What each step of the engine gives. When closed it aborts what has not ended.

    `prepare` is called once all requests are queued, before the first step.

    Raises JBatchError while the engine has unfinished requests of someone else.
    """
    check_idle(engine)
    deltas = _Deltas(engine.tokenizer, requests)
    unfinished = set()
    try:
        for request in requests:
            refused = request.add_to(engine)
            if refused is None:
                unfinished.add(request.request_id)
            else:
                yield deltas.of_output(refused)
        prepare()
        while unfinished:
            step = engine.step()
            unfinished.difference_update(output.request_id for output in step.outputs)
            yield deltas.of_step(step)
    finally:  # also where the caller leaves: the engine must be clean for the next call
        for request_id in unfinished:
            engine.abort(request_id)
        while engine.has_unfinished:  # what is in flight, and the outputs of the aborted
            engine.step()


def flatten(steps: Generator[list[TextDelta]]) -> Iterator[TextDelta]:
    """One delta after the other."""
    with contextlib.closing(steps):
        for deltas in steps:
            yield from deltas


class AsyncStream:
    """Async iteration over deltas; the engine's steps run in a thread of its own, one at a time.

    Leaving the loop early aborts what has not ended as soon as nothing refers to the stream any more, or at
    once with `aclose`.
    """

    def __init__(self, steps: Generator[list[TextDelta]]):
        self._steps = steps
        self._ready: deque[TextDelta] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="jbatch-stream")
        self._closed = False

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> TextDelta:
        while not self._ready and not self._closed:
            try:
                loop = asyncio.get_running_loop()
                deltas = await loop.run_in_executor(self._worker, next, self._steps, None)
            except BaseException:  # a cancellation included: its step may still run
                await self.aclose()
                raise
            if deltas is None:
                await self.aclose()
            else:
                self._ready.extend(deltas)
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Abort what has not ended; returns when the engine is clean."""
        if not self._closed:
            self._closed = True
            self._ready.clear()
            closing = self._worker.submit(self._steps.close)  # behind a step that still runs
            self._worker.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))

    def __del__(self) -> None:
        if not self._closed:
            self._closed = True
            self._worker.submit(self._steps.close)
            self._worker.shutdown(wait=True)


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


class _Deltas:
    """Makes the deltas of some requests."""

    def __init__(self, tokenizer: Tokenizer | None, requests: Sequence[UncheckedRequest]):
        self._tokenizer = tokenizer
        self._requests = {request.request_id: (idx, request.params) for idx, request in enumerate(requests)}
        self._texts: dict[str, dict[int, _Text]] = {}  # by request_id and sample_idx

    def of_step(self, step: EngineStep) -> list[TextDelta]:
        deltas = []
        for new in step.progress:
            if new.request_id not in self._requests:
                continue  # someone added it to the engine by hand
            text = self._text(new.request_id, new.sample_idx)
            if new.completion is not None:
                deltas.append(self._end(new.request_id, new.completion))
            else:
                prompt_idx, _ = self._requests[new.request_id]
                shown = text.push(new.token_ids)
                deltas.append(TextDelta(prompt_idx, new.sample_idx, shown, new.token_ids))
        for output in step.outputs:
            if output.request_id in self._requests:
                deltas = self._with_output(deltas, output)
        return deltas

    def of_output(self, output: RequestOutput) -> list[TextDelta]:
        """Of a request that was refused."""
        return self._with_output([], output)

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

    def _text(self, request_id: str, sample_idx: int) -> _Text:
        texts = self._texts.setdefault(request_id, {})
        if sample_idx not in texts:
            texts[sample_idx] = _Text(self._detokenizer(self._requests[request_id][1]))
        return texts[sample_idx]

    def _detokenizer(self, params: SamplingParams) -> Detokenizer | None:
        if self._tokenizer is None or not params.detokenize:
            return None
        return self._tokenizer.detokenizer(params.stop or (), skip_special_tokens=params.skip_special_tokens)
