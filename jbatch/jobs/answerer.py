"""From a line of a job to its result: the line is parsed, the engine answers, the answer gets its form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jbatch.engine.engine import Engine
from jbatch.errors import ConfigError, JobError, RequestError
from jbatch.jobs.input import InputLine, Parse, id_of
from jbatch.jobs.request_line import Form, LineError, RequestLine
from jbatch.jobs.results import dump, error_result, success_result
from jbatch.outputs import RequestOutput

EncodeChat = Callable[[Sequence[dict[str, Any]]], Sequence[int]]  # messages to token ids; raises RequestError


class LineResult(NamedTuple):
    """The result of one line, ready to be written."""

    line_no: int
    raw: bytes
    error_code: str | None = None  # None: an answer
    output: RequestOutput | None = None  # what the answer is made of


@dataclasses.dataclass(slots=True)
class Pending:
    """A line that the engine has."""

    line_no: int
    custom_id: str
    request: RequestLine
    bound: int  # tokens at most
    num_bytes: int  # of the line
    num_tokens: int = 0  # so far

    @property
    def request_id(self) -> str:
        return str(self.line_no)


@dataclasses.dataclass(frozen=True)
class Answerer:
    """What a job needs of a loaded model. Whatever is wrong with a line becomes its result; others go on."""

    engine: Engine
    parse: Parse
    encode_chat: EncodeChat
    compilations: Callable[[], int]  # since the model was loaded

    def admit(self, line: InputLine) -> Pending | LineResult:
        """Give a line to the engine; its result where that is an error already.

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
        )
        try:
            prompt: Any = request.prompt
            if request.messages is not None:
                prompt = list(self.encode_chat(request.messages))
            self.engine.add_request(pending.request_id, prompt, request.params, index=line.line_no - 1)
        except RequestError as error:
            return _failed(pending, error.code, str(error))
        except ConfigError as error:  # something is missing here, and the line is right
            raise JobError(str(error)) from error
        except Exception as error:  # a tokenizer's or a template's, of this line alone
            return _failed(pending, "internal_error", f"{type(error).__name__}: {error}")
        return pending

    def answer(self, pending: Pending, output: RequestOutput) -> LineResult:
        """The result of a line that has left the engine: an error where all of its samples are."""
        if output.error is not None and all(sample.error is not None for sample in output.outputs):
            return _failed(pending, "generation_failed", output.error)
        try:
            raw = dump(success_result(pending.request, pending.custom_id, output))
        except Exception as error:  # of this text alone
            return _failed(pending, "internal_error", f"{type(error).__name__}: {error}")
        return LineResult(pending.line_no, raw, output=output)

    def _bound(self, request: RequestLine) -> int:
        params = request.params
        room = self.engine.scheduler.max_seq_len
        return params.n * (room if params.max_tokens is None else params.max_tokens)


def refuse(line: InputLine, error: LineError) -> LineResult:
    """The result of a line that asks for nothing that can be served."""
    custom_id = id_of(line.line_no, error.custom_id)
    return _error(error.form, custom_id, line.line_no, error.code, error.message)


def _failed(pending: Pending, code: str, message: str) -> LineResult:
    return _error(pending.request.form, pending.custom_id, pending.line_no, code, message)


def _error(form: Form | None, custom_id: str, line_no: int, code: str, message: str) -> LineResult:
    return LineResult(line_no, dump(error_result(form, custom_id, line_no, code, message)), code)
