"""From a line of a job to its result: the line is parsed, the engine answers, the answer gets its form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jbatch.engine.eta import bound_of
from jbatch.engine.metric import Metric
from jbatch.engine.replicas import AnyEngine
from jbatch.engine.wishes import schedule_fields
from jbatch.errors import ConfigError, JobError, RequestError
from jbatch.jobs.input import InputLine, Parse, id_of
from jbatch.jobs.request_line import Form, LineError, RequestLine
from jbatch.jobs.results import Echo, Failure, dump, error_result, success_result
from jbatch.outputs import CompletionOutput, RequestOutput
from jbatch.text.chat_options import ChatOptions
from jbatch.text.messages import Message

EncodeChat = Callable[[Sequence[Message], ChatOptions], Sequence[int]]  # to token ids; raises RequestError
MAX_LINES = 2**32  # of an input: the seeds of a line's further prompts are counted from here


class LineResult(NamedTuple):
    """The result of one line, ready to be written."""

    line_no: int
    raw: bytes
    error_code: str | None = None  # None: an answer
    outputs: Sequence[RequestOutput] = ()  # what the answer is made of, one for each prompt
    error: str = ""
    may_end_early: bool = True  # as its sampling parameters say


@dataclasses.dataclass(slots=True)
class Pending:
    """A line that the engine has: a request for each of its prompts."""

    line_no: int
    custom_id: str
    request: RequestLine
    bound: int  # tokens at most
    num_bytes: int  # of the line
    prefix: str = ""  # of its requests' ids, where an engine has lines of several inputs
    expected: int = 0  # tokens: as a predictor says, or those that there is room for
    num_tokens: int = 0  # so far
    outputs: dict[str, RequestOutput] = dataclasses.field(default_factory=dict)  # by request id, as they end

    @property
    def request_ids(self) -> list[str]:
        """Of its prompts, in order."""
        first = f"{self.prefix}{self.line_no}"
        return [first, *(f"{first}.{idx}" for idx in range(1, self.request.num_prompts))]

    @property
    def complete(self) -> bool:
        """Whether all of its requests have ended."""
        return len(self.outputs) == self.request.num_prompts


@dataclasses.dataclass(frozen=True)
class Answerer:
    """What a job needs of a loaded model. Whatever is wrong with a line becomes its result; others go on."""

    engine: AnyEngine
    parse: Parse
    encode_chat: EncodeChat
    compilations: Callable[[], int]  # since the model was loaded
    prepare: Callable[[], object] = lambda: None  # compiles what lines may need; before the first one
    numerics: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # what else the bits of its results depend on

    def metrics(self) -> list[Metric]:
        """Of the engine, as they are now."""
        return self.engine.metrics(self.compilations())

    def admit(self, line: InputLine, prefix: str = "") -> Pending | LineResult:
        """Give a line to the engine; its result where that is an error already.

        Args:
          prefix: of its requests' ids.

        Raises:
          JobError: where something is missing on this machine.
        """
        try:
            request = self.parse(line.raw)
        except LineError as error:
            return refuse(line, error)
        pending = Pending(
            line.line_no,
            id_of(line.line_no, request.custom_id),
            request,
            self._bound(request),
            len(line.raw),
            prefix,
        )
        try:
            self._add_requests(pending)
        except RequestError as error:
            return _failed(pending, Failure(error.code, str(error), error.field))
        except ConfigError as error:  # something is missing here, and the line is right
            raise JobError(str(error)) from error
        except Exception as error:  # a tokenizer's or a template's, of this line alone
            return _failed(pending, _internal(error))
        return pending

    def _add_requests(self, pending: Pending) -> None:
        """Queue a request for each prompt, or none where that raises: RequestError, with the index of the
        prompt where there are several."""
        request, request_ids = pending.request, pending.request_ids
        prompts: Sequence[Any] = request.prompts
        if request.chat is not None:
            prompts = [list(self.encode_chat(request.chat.messages, request.chat.options))]
        for idx, (request_id, prompt) in enumerate(zip(request_ids, prompts, strict=True)):
            try:
                line = pending.line_no - 1
                index = line + idx * MAX_LINES
                queued = self.engine.add_request(
                    request_id,
                    prompt,
                    request.params,
                    index=index,
                    request_idx=line,
                    cache_salt=request.cache_salt,
                    **schedule_fields(request.wishes, self.engine.clock()),
                )
            except Exception as error:
                for earlier in request_ids[:idx]:
                    self.engine.abort(earlier)
                if len(prompts) > 1 and isinstance(error, RequestError):
                    raise _of_prompt(error, idx) from error
                raise
            pending.expected += request.params.n * queued.expected_len

    def answer(self, pending: Pending) -> LineResult:
        """The result of a line that has left the engine: an error where all samples of a prompt are."""
        outputs = [pending.outputs[request_id] for request_id in pending.request_ids]
        for idx, output in enumerate(outputs):
            if output.error is not None and all(sample.error is not None for sample in output.outputs):
                where = f"prompt[{idx}]: " if len(outputs) > 1 else ""
                return _failed(pending, Failure("generation_failed", f"{where}{output.error}"))
        try:
            request = pending.request
            echoes = [
                [self._echo(request, output, sample) for sample in output.outputs]
                for output in outputs
                if request.echo
            ]
            raw = dump(success_result(request, pending.custom_id, outputs, echoes))
        except Exception as error:  # of this text alone
            return _failed(pending, _internal(error))
        return LineResult(
            pending.line_no, raw, outputs=outputs, may_end_early=pending.request.params.may_end_early
        )

    def _echo(self, request: RequestLine, output: RequestOutput, sample: CompletionOutput) -> Echo:
        """What is shown of a prompt in front of a sample: its text as it was given, or that of its token ids
        (without a character that begins in them and ends in the sample, which has it)."""
        tokenizer, params, text = self.engine.tokenizer, request.params, output.prompt
        if tokenizer is None:
            return Echo(text or "", None, None)
        prompt, skip = output.prompt_token_ids, params.skip_special_tokens
        if text is None or params.truncate_prompt_tokens is not None:
            whole = tokenizer.decode(prompt + sample.token_ids, skip_special_tokens=skip)
            added = tokenizer.decode(sample.token_ids, after=prompt, skip_special_tokens=skip)
            text = whole[: len(whole) - len(added)]
        if params.logprobs is None:
            return Echo(text, None, None)
        offsets = tokenizer.text_offsets(prompt, skip_special_tokens=skip)
        first = tokenizer.token_text(prompt[0]).text
        return Echo(text, first, [min(offset, len(text)) for offset in offsets])

    def _bound(self, request: RequestLine) -> int:
        return request.num_prompts * bound_of(request.params, self.engine.scheduler.max_seq_len)


def refuse(line: InputLine, error: LineError) -> LineResult:
    """The result of a line that asks for nothing that can be served."""
    custom_id = id_of(line.line_no, error.custom_id)
    return _error(error.form, custom_id, line.line_no, Failure(error.code, error.message, error.field))


def _of_prompt(error: RequestError, idx: int) -> RequestError:
    """The error of one prompt of several."""
    field = "prompt_token_ids" if error.field.startswith("prompt_token_ids") else error.field
    if field not in ("prompt", "prompt_token_ids"):
        return error  # of the parameters, which all share
    return RequestError(f"prompt[{idx}]", error.value, error.reason, code=error.code)


def _internal(error: Exception) -> Failure:
    return Failure("internal_error", f"{type(error).__name__}: {error}")


def _failed(pending: Pending, failure: Failure) -> LineResult:
    return _error(pending.request.form, pending.custom_id, pending.line_no, failure)


def _error(form: Form | None, custom_id: str, line_no: int, failure: Failure) -> LineResult:
    raw = dump(error_result(form, custom_id, line_no, failure))
    return LineResult(line_no, raw, failure.code, error=failure.message)
