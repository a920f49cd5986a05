"""The loop of a job: lines into the engine, a window of them at a time, and records out as they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from jbatch.engine.engine import Engine
from jbatch.errors import ConfigError, JobError, RequestError
from jbatch.host.scheduler import NON_FINITE
from jbatch.jobs.eta import TokensLeft
from jbatch.jobs.input import InputLine, Parse, id_of
from jbatch.jobs.output import Output
from jbatch.jobs.request_line import Form, LineError, RequestLine
from jbatch.jobs.results import dump, error_record, result_record
from jbatch.jobs.summary import JobSummary
from jbatch.outputs import RequestOutput

MAX_BYTES_AT_ONCE = 2**22
MAX_NON_FINITE = 100  # requests: where all of so many fail, the others would, too
MAX_BYTES_PENDING = 2**26  # of lines that the engine has
WINDOW = 4  # times the sequences that run at once: enough that none waits for the next line

EncodeChat = Callable[[Sequence[dict[str, Any]]], Sequence[int]]  # messages to token ids; raises RequestError


@dataclasses.dataclass(slots=True)
class _Pending:
    """A line that the engine has."""

    line_no: int
    custom_id: str
    line: RequestLine
    bound: int  # tokens at most
    num_bytes: int  # of the line
    num_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class JobParts:
    """What a job is made of. `on_record(line_no, offset, is_error)` hears of each record that was written."""

    engine: Engine
    output: Output
    parse: Parse
    encode_chat: EncodeChat
    summary: JobSummary
    tokens_left: TokensLeft
    on_record: Callable[[int, int, bool], None] = lambda line_no, offset, is_error: None


class Job:
    """Answers lines. Only a window of them is in memory, and of long ones fewer."""

    def __init__(self, parts: JobParts):
        self._parts, self._engine = parts, parts.engine
        self._window = WINDOW * parts.engine.scheduler.config.num_rows
        self._pending: dict[str, _Pending] = {}  # by request id, the line's number
        self._bytes_pending = 0
        self._num_non_finite: int | None = 0  # requests; None once one did not end so

    def run(self, lines: Iterator[InputLine], stop: Callable[[], bool], on_step: Callable[[], None]) -> bool:
        """Answer all lines; False where `stop` said to end before. Then what has finished is written, and
        what was running is dropped: the next run computes it again, to the same text.

        A line that cannot be served gets an error record, whatever is wrong with it; the others go on.

        Raises:
          JobError: where a step fails on the device, or something is missing on this machine. Finished
            records are kept.
          OSError: where a record cannot be written.
        """
        more = True
        try:
            while more or self._pending:
                if stop():
                    return False
                more = more and self._feed(lines)
                if self._engine.has_unfinished:
                    self._step()
                self._parts.output.sync()
                on_step()
        finally:
            self._drop_running()
        return True

    def _feed(self, lines: Iterator[InputLine]) -> bool:
        """Fill the window; False at the end of the input. Wrong lines take no room in it, and long ones take
        their time: neither may keep the device waiting, so what is read at once is bounded, too."""
        num_bytes = 0
        for _ in range(self._window - len(self._pending)):
            if self._bytes_pending > MAX_BYTES_PENDING:
                break
            line = next(lines, None)
            if line is None:
                return False
            self._admit(line)
            num_bytes += len(line.raw)
            if num_bytes > MAX_BYTES_AT_ONCE:
                break
        return True

    def _admit(self, line: InputLine) -> None:
        """Give a line to the engine, or write why not."""
        parts = self._parts
        try:
            request = parts.parse(line.raw)
        except LineError as error:
            parts.tokens_left.skip()
            custom_id = id_of(line.line_no, error.custom_id)
            self._write_error(error.form, line.line_no, custom_id, error.code, error.message)
            return
        custom_id = id_of(line.line_no, request.custom_id)
        try:
            prompt: Any = request.prompt
            if request.messages is not None:
                prompt = list(parts.encode_chat(request.messages))
            self._engine.add_request(str(line.line_no), prompt, request.params, index=line.line_no - 1)
        except RequestError as error:
            parts.tokens_left.skip()
            self._write_error(request.form, line.line_no, custom_id, error.code, str(error))
        except ConfigError as error:  # something is missing here, and the line is right
            raise JobError(str(error)) from error
        except Exception as error:  # a tokenizer's or a template's, of this line alone
            parts.tokens_left.skip()
            message = f"{type(error).__name__}: {error}"
            self._write_error(request.form, line.line_no, custom_id, "internal_error", message)
        else:
            room = self._engine.scheduler.max_seq_len
            params = request.params
            bound = params.n * (room if params.max_tokens is None else params.max_tokens)
            num_bytes = len(line.raw)
            self._pending[str(line.line_no)] = _Pending(line.line_no, custom_id, request, bound, num_bytes)
            self._bytes_pending += num_bytes
            parts.tokens_left.begin(bound)

    def _step(self) -> None:
        try:
            step = self._engine.step()
        except Exception as error:  # whatever the device raises
            raise JobError(f"a step failed: {type(error).__name__}: {error}") from error
        for progress in step.progress:
            pending = self._pending.get(progress.request_id)
            if pending is not None:
                pending.num_tokens += len(progress.token_ids)
                self._parts.tokens_left.add(len(progress.token_ids))
        for output in step.outputs:
            self._answer(output)

    def _answer(self, output: RequestOutput) -> None:
        pending = self._pending.pop(output.request_id)
        self._bytes_pending -= pending.num_bytes
        self._parts.tokens_left.end(pending.bound, pending.num_tokens)
        form, line_no, custom_id = pending.line.form, pending.line_no, pending.custom_id
        if output.error is not None and all(one.error is not None for one in output.outputs):
            self._write_error(form, line_no, custom_id, "generation_failed", output.error)
            self._count_non_finite(output)
            return
        self._num_non_finite = None
        try:
            record = dump(result_record(pending.line, custom_id, output))
        except Exception as error:  # of this text alone
            message = f"{type(error).__name__}: {error}"
            self._write_error(form, line_no, custom_id, "internal_error", message)
            return
        self._write(line_no, record, is_error=False)
        self._parts.summary.add(output)

    def _count_non_finite(self, output: RequestOutput) -> None:
        """Raise JobError where a model gives nothing else: it has overflowed, or its weights are broken."""
        if self._num_non_finite is None:
            return
        if not all(NON_FINITE in (one.error or "") for one in output.outputs):
            self._num_non_finite = None
            return
        self._num_non_finite += 1
        if self._num_non_finite == MAX_NON_FINITE:
            raise JobError(
                f"all of the first {MAX_NON_FINITE} requests ended with logits that are not finite. A "
                "float16 model may overflow: try --dtype bfloat16, with --force --retry-errors"
            )

    def _write_error(self, form: Form | None, line_no: int, custom_id: str, code: str, message: str) -> None:
        record = dump(error_record(form, custom_id, line_no, code, message))
        self._write(line_no, record, is_error=True)
        self._parts.summary.add_error(code)

    def _write(self, line_no: int, record: bytes, *, is_error: bool) -> None:
        offset = self._parts.output.write(record)
        self._parts.on_record(line_no, offset, is_error)

    def _drop_running(self) -> None:
        """Leave the engine empty."""
        for request_id in self._pending:
            self._engine.abort(request_id)
        self._pending.clear()
        self._bytes_pending = 0
        with suppress(Exception):  # where a step failed before, and nobody waits for these
            while self._engine.has_unfinished:
                self._engine.step()
