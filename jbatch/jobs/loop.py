"""The loop of a job: lines into the engine, a window of them at a time, and results out as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from jbatch.engine.eta import TokensLeft
from jbatch.errors import JobError
from jbatch.jobs.answerer import Answerer, LineResult, Pending
from jbatch.jobs.input import InputLine
from jbatch.jobs.ledger import Ledger
from jbatch.jobs.non_finite import NonFiniteWatch
from jbatch.outputs import RequestOutput

MAX_BYTES_AT_ONCE = 2**22
MAX_BYTES_PENDING = 2**26  # of lines that the engine has
WINDOW = 4  # times the sequences that run at once: enough that none waits for the next line


class Job:
    """Answers lines. Only a window of them is in memory, and of long ones fewer."""

    def __init__(self, answerer: Answerer, ledger: Ledger, tokens_left: TokensLeft):
        self._answerer, self._engine = answerer, answerer.engine
        self._ledger, self._tokens_left = ledger, tokens_left
        self._window = WINDOW * answerer.engine.num_rows
        self._pending: dict[str, Pending] = {}  # by request id
        self._bytes_pending = 0
        self._non_finite = NonFiniteWatch()

    def run(self, lines: Iterator[InputLine], stop: Callable[[], bool], on_step: Callable[[], None]) -> bool:
        """Answer all lines; False where `stop` said to end before. Then what has finished is written, and
        what was running is dropped: the next run computes it again, to the same text.

        A line that cannot be served gets an error as its result, whatever is wrong with it; the others go on.

        Raises:
          JobError: where a step fails on the device, or something is missing on this machine. Results that
            are written stay.
          OSError: where a result cannot be written.
        """
        more = True
        try:
            while more or self._pending:
                if stop():
                    return False
                more = more and self._feed(lines)
                if self._engine.has_unfinished:
                    self._step()
                self._ledger.output.sync()
                on_step()
        finally:
            self._drop_pending()
        return True

    def _feed(self, lines: Iterator[InputLine]) -> bool:
        """Fill the window; False at the end of the input. Wrong lines take no room in it, and long ones take
        their time: neither may keep the device waiting, so what is read at once is bounded, too."""
        num_bytes, room = 0, self._window - len(self._pending)  # in requests: a line may have several
        while room > 0:
            if self._bytes_pending > MAX_BYTES_PENDING:
                break
            line = next(lines, None)
            if line is None:
                return False
            room -= self._admit(line)
            num_bytes += len(line.raw)
            if num_bytes > MAX_BYTES_AT_ONCE:
                break
        return True

    def _admit(self, line: InputLine) -> int:
        """Give a line to the engine, or write why not; how much of the window that was worth."""
        admitted = self._answerer.admit(line)
        if isinstance(admitted, LineResult):
            self._tokens_left.skip()
            self._ledger.write(admitted)
            return 1
        self._pending |= dict.fromkeys(admitted.request_ids, admitted)
        self._bytes_pending += admitted.num_bytes
        self._tokens_left.begin(admitted.bound, admitted.expected)
        return admitted.request.num_prompts

    def _step(self) -> None:
        try:
            step = self._engine.step()
        except Exception as error:  # whatever the device raises
            raise JobError(f"a step failed: {type(error).__name__}: {error}") from error
        for progress in step.progress:
            pending = self._pending.get(progress.request_id)
            if pending is not None:
                pending.num_tokens += len(progress.token_ids)
                self._tokens_left.add(len(progress.token_ids))
        for output in step.outputs:
            self._end(output)

    def _end(self, output: RequestOutput) -> None:
        """Take in a request that has left the engine; the last one of its line writes the line's result."""
        pending = self._pending.pop(output.request_id, None)
        if pending is None:  # of a line that was refused for another of its prompts
            return
        pending.outputs[output.request_id] = output
        if pending.complete:
            self._bytes_pending -= pending.num_bytes
            self._tokens_left.end(pending.expected, pending.num_tokens)
            self._ledger.write(self._answerer.answer(pending))
        self._non_finite.see(output)

    def _drop_pending(self) -> None:
        """Leave the engine empty."""
        for request_id in self._pending:
            self._engine.abort(request_id)
        self._pending.clear()
        self._bytes_pending = 0
        with suppress(Exception):  # where a step failed before, and nobody waits for these
            while self._engine.has_unfinished:
                self._engine.step()
