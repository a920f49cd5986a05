"""An engine in a thread of its own: requests come in at any time, and their outputs go to who waits for them.

So a batch of requests that ends leaves no slot empty: those of the next one are in the queue already.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from jbatch.engine.replicas import AnyEngine
from jbatch.errors import JobError
from jbatch.outputs import RequestOutput


class EngineThread:
    """Steps an engine as long as anyone waits for an output. A step that fails ends it: whoever waits, and
    whoever comes later, gets a JobError."""

    def __init__(self, engine: AnyEngine):
        self._engine = engine
        self._changed = threading.Condition()  # of what follows
        self._waiting: dict[str, Future[RequestOutput]] = {}  # by request id
        self._failure: JobError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="jbatch engine", daemon=True)
        self._thread.start()

    def submit(self, add: Callable[[], Sequence[str]]) -> list[Future[RequestOutput]]:
        """Add requests to the engine, by a function that does so and gives their ids; the outputs to come.

        Raises:
          JobError: where a step failed before. And whatever `add` raises.
        """
        with self._changed:  # no output goes out before somebody waits for it
            if self._failure is not None:
                raise self._failure
            futures = {request_id: Future[RequestOutput]() for request_id in add()}
            self._waiting |= futures
            self._changed.notify()
        return list(futures.values())

    def close(self) -> None:
        """End the thread; who waits gets a JobError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._fail(JobError("the engine was closed"))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
            try:
                step = self._engine.step()
            except Exception as error:  # whatever the device raises
                failure = JobError(f"a step failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                self._fail(failure)
                return
            with self._changed:
                ended = [(self._waiting.pop(output.request_id, None), output) for output in step.outputs]
            for future, output in ended:
                if future is not None:
                    future.set_result(output)

    def _fail(self, failure: JobError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(failure)
