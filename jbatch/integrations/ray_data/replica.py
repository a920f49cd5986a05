"""One engine of a job's cluster: lines come in a few at a time, and results leave as they are ready."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from jbatch.errors import JBatchError, JobError
from jbatch.host.metrics import Summary
from jbatch.integrations.ray_data.engine_thread import EngineThread
from jbatch.jobs.answerer import LineResult, Pending
from jbatch.jobs.command import JobModel, Needs
from jbatch.jobs.input import InputLine
from jbatch.jobs.non_finite import NonFiniteWatch
from jbatch.jobs.open_job import OfModel
from jbatch.jobs.run import of_model

GATHER_S = 0.05  # results are sent together that are ready within this time: each message costs


class Loaded(NamedTuple):
    """A replica that is ready."""

    of_model: OfModel
    num_rows: int  # sequences that run at once


class Routed(NamedTuple):
    """A line of one of several jobs."""

    job_idx: int
    line: InputLine


class Answered(NamedTuple):
    """The result of a line of one of several jobs."""

    job_idx: int
    result: LineResult


class Exchange(NamedTuple):
    """What a replica gives at once."""

    results: list[Answered]
    summary: Summary  # of its engine, so far
    compilations: int


class Refused(NamedTuple):
    """Why a replica cannot go on, where another one could not either."""

    reason: str


class Replica:
    """An engine that answers lines of several jobs. Ray makes one in a process of its own, in which it has
    said before which GPUs there are: JAX is imported in `load`."""

    def __init__(self, model: JobModel, needs: Needs):
        self._model, self._needs = model, needs
        self._stack = ExitStack()
        self._ready: asyncio.Queue[Answered | JobError] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch = NonFiniteWatch()

    async def load(self) -> Loaded | Refused:
        """Load the model, and compile what lines may need."""
        try:
            self._answerer = self._stack.enter_context(self._model.load(self._needs))
            self._answerer.prepare()
        except JBatchError as error:
            return Refused(str(error))
        self._engine = EngineThread(self._answerer.engine)
        scheduler = self._answerer.engine.scheduler
        return Loaded(of_model(self._answerer), scheduler.config.shape.num_rows)

    async def exchange(self, lines: Sequence[Routed]) -> Exchange | Refused:
        """Take some lines more, and give results that are ready: one at least.

        Raises:
          JobError: where a step failed.
        """
        try:
            for routed in lines:
                self._admit(routed)
            ready = [await self._ready.get()]
            await asyncio.sleep(GATHER_S)
            while not self._ready.empty():
                ready.append(self._ready.get_nowait())
            for answered in ready:
                if isinstance(answered, JobError):
                    raise answered
        except JobError as error:
            if error.__cause__ is None or isinstance(error.__cause__, JBatchError):
                return Refused(str(error))
            raise JobError(str(error)) from None  # what a device raises may not be known elsewhere
        results = [answered for answered in ready if isinstance(answered, Answered)]
        return Exchange(results, self._answerer.engine.summary, self._answerer.compilations())

    def _admit(self, routed: Routed) -> None:
        """Give a line to the engine, or lay ready why not."""
        admitted: Pending | LineResult | None = None

        def add() -> Sequence[str]:
            nonlocal admitted
            admitted = self._answerer.admit(routed.line, prefix=f"{routed.job_idx}:")
            return () if isinstance(admitted, LineResult) else admitted.request_ids

        outputs = self._engine.submit(add)
        if isinstance(admitted, LineResult):
            self._ready.put_nowait(Answered(routed.job_idx, admitted))
        elif admitted is not None:
            task = asyncio.create_task(self._finish(routed.job_idx, admitted, outputs))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, job_idx: int, pending: Pending, outputs: Sequence) -> None:
        """Wait for a line's outputs, and lay its result ready."""
        try:
            for future in outputs:
                output = await asyncio.wrap_future(future)
                pending.outputs[output.request_id] = output
                self._watch.see(output)
            self._ready.put_nowait(Answered(job_idx, self._answerer.answer(pending)))
        except JobError as error:
            self._ready.put_nowait(error)
