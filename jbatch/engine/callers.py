"""One engine for any number of asynchronous calls: they share its batch.

A thread of its own steps the engine while there are calls, and ends with the last of them. Event loops leave
it notes and take what it lays ready, so that no loop waits for a step and no step for a loop: a caller that
is slow, or busy, or gone, holds nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, Self, TypeVar

from jbatch.engine.driver import Driver
from jbatch.engine.prompts import UncheckedRequest
from jbatch.engine.records import Progress
from jbatch.engine.replicas import AnyEngine
from jbatch.errors import JBatchError
from jbatch.outputs import RequestOutput
from jbatch.sampling_params import SamplingParams

T = TypeVar("T")
NAME = "astream or agenerate"
TakeIn = Callable[[Iterable[Progress], Iterable[RequestOutput]], list[T]]
Note = Callable[[Driver], None]


class _Call(Generic[T]):
    """One call's requests, and what the thread lays ready for its caller."""

    def __init__(self, requests: Sequence[UncheckedRequest], take_in: TakeIn[T]):
        self.requests, self.take_in = requests, take_in
        self.unfinished = {request.request_id for request in requests}
        self.loop = asyncio.get_running_loop()
        self.ready: deque[T] = deque()
        self.error: BaseException | None = None
        self.ended = False  # the last to be set: nothing will follow what is ready
        self.waiters: list[asyncio.Future[None]] = []  # where nothing was ready


class Callers:
    """An engine, shared by calls that come and go.

    Args:
      prepare: called with the parameters of each call's requests before they are added.
    """

    def __init__(self, engine: AnyEngine, prepare: Callable[[Iterable[SamplingParams]], None]):
        self.engine, self._prepare = engine, prepare
        self._mutex = threading.Lock()  # of the next three; never held for long
        self._notes: deque[Note] = deque()
        self._wanted: set[_Call[Any]] = set()  # calls that have neither ended nor been left
        self._thread: threading.Thread | None = None
        self._steps = threading.Lock()  # held by the thread. What follows is its own
        self._calls: dict[str, _Call[Any]] = {}  # by request_id
        self._leaving: list[_Call[Any]] = []  # they are told so once the engine is clean

    # From any thread.

    def begin(self, call: _Call[Any]) -> None:
        """Add a call's requests before the next step."""
        self.engine.tenancy.check_process()
        self.engine.check_open()
        with self._mutex:
            self._wanted.add(call)
        self._leave_note(partial(self._begin, call))

    def abort(self, call: _Call[Any]) -> None:
        """End a call's requests before the next step."""
        if self.engine.tenancy.forked:
            return  # they are the parent's
        with self._mutex:
            self._wanted.discard(call)
        if not call.ended:
            self._leave_note(partial(self._drop, call))

    def settle(self) -> None:
        """Wait, a step at most, where all calls that there are have been left."""
        with self._mutex:
            thread = None if self._wanted else self._thread
        if thread is not None:
            thread.join()

    def close(self) -> None:
        """End all calls with an error."""
        error = JBatchError("the LLM was closed")
        with self._mutex:
            thread = self._thread
        if thread is not None:
            self._leave_note(lambda driver: self._fail_all(error, driver))
            thread.join()

    def _leave_note(self, note: Note) -> None:
        with self._mutex:
            self._notes.append(note)
            if (
                self._thread is None or not self._thread.is_alive()
            ):  # one that an interrupt kept from starting
                self._thread = threading.Thread(target=self._run, name="jbatch-steps")
                self._thread.start()

    # In the thread.

    def _run(self) -> None:
        with self._steps:
            while self._has_notes():
                driver = Driver(self.engine, NAME, self.settle)
                try:
                    while self._follow_notes(driver):
                        self._step(driver)
                        if self._calls:
                            self._tell_leaving()
                finally:
                    driver.left = True
                    with contextlib.suppress(Exception):  # of a step whose results nobody waits for
                        driver.leave()
                    self._tell_leaving()

    def _has_notes(self) -> bool:
        """Whether there are notes. Where there are none the thread ends, and the next note starts another."""
        with self._mutex:
            if not self._notes:
                self._thread = None
            return bool(self._notes)

    def _follow_notes(self, driver: Driver) -> bool:
        """Do what they say; whether there are calls then."""
        while self._notes:
            self._notes.popleft()(driver)
        return bool(self._calls)

    def _begin(self, call: _Call[Any], driver: Driver) -> None:
        try:
            if self.engine.driver is not driver:
                driver.begin()
            self._prepare(request.params for request in call.requests)
            for request in call.requests:
                self._calls[request.request_id] = call
                refused = driver.add(request)
                if refused is not None:
                    self._give(call, (), (refused,), driver)
        except BaseException as error:  # of this call alone, whatever a user's policy raises
            self._fail(call, error, driver)
        if not call.unfinished and call not in self._leaving:
            self._leaving.append(call)
        self._wake([call])

    def _step(self, driver: Driver) -> None:
        try:
            step = driver.step()
        except BaseException as error:  # all requests have ended with it
            self._fail_all(error, driver)
            return
        parts: dict[_Call[Any], tuple[list[Progress], list[RequestOutput]]] = defaultdict(lambda: ([], []))
        for new in step.progress:
            if (call := self._calls.get(new.request_id)) is not None:
                parts[call][0].append(new)
        for output in step.outputs:
            if (call := self._calls.get(output.request_id)) is not None:
                parts[call][1].append(output)
        for call, (progress, outputs) in parts.items():
            self._give(call, progress, outputs, driver)
        self._wake(parts)

    def _give(
        self,
        call: _Call[Any],
        progress: Iterable[Progress],
        outputs: Iterable[RequestOutput],
        driver: Driver,
    ) -> None:
        """Lay ready for a caller what a step brought."""
        ended = [output.request_id for output in outputs]
        try:
            call.ready.extend(call.take_in(progress, outputs))
        except Exception as error:  # of this call alone
            self._fail(call, error, driver)
            return
        for request_id in ended:
            del self._calls[request_id]
            call.unfinished.discard(request_id)
        if not call.unfinished:
            self._leaving.append(call)

    def _fail(self, call: _Call[Any], error: BaseException, driver: Driver) -> None:
        call.error = error
        self._drop(call, driver)

    def _fail_all(self, error: BaseException, driver: Driver) -> None:
        for call in set(self._calls.values()):
            self._fail(call, error, driver)

    def _drop(self, call: _Call[Any], driver: Driver) -> None:
        """End what has not ended."""
        if call.unfinished:
            for request_id in call.unfinished:
                if self._calls.pop(request_id, None) is not None:
                    self.engine.abort(request_id)
            call.unfinished.clear()
            self._leaving.append(call)

    def _tell_leaving(self) -> None:
        leaving, self._leaving = self._leaving, []
        with self._mutex:
            self._wanted.difference_update(leaving)
        for call in leaving:
            call.ended = True
        self._wake(leaving)

    def _wake(self, calls: Iterable[_Call[Any]]) -> None:
        """Call the event loops of those who wait, each once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
        for call in calls:
            if call.loop.is_closed() and not call.ended:
                self.abort(call)  # nobody will come for it
            for waiter in tuple(call.waiters):
                by_loop[waiter.get_loop()].append(waiter)
        for loop, waiters in by_loop.items():
            with contextlib.suppress(RuntimeError):  # it was closed
                loop.call_soon_threadsafe(_wake_up, waiters)


def _wake_up(waiters: Iterable[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


class AsyncStream(Generic[T]):
    """Async iteration over what the engine gives to one call's requests, which begins with the first item.

    A task that is cancelled, and `aclose`, abort what has not ended and return once its pages are free. Who
    leaves the loop early does the same within a step, once nothing refers to the stream any more.
    """

    def __init__(self, callers: Callers, requests: Sequence[UncheckedRequest], take_in: TakeIn[T]):
        self._callers, self._requests, self._take_in = callers, requests, take_in
        self._call: _Call[T] | None = None
        self._closed = self._awaited = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._closed:
            raise StopAsyncIteration
        if self._awaited:
            raise JBatchError("another task awaits this stream's next item: one at a time reads a stream")
        if self._call is None:
            self._call = _Call(self._requests, self._take_in)
            self._callers.begin(self._call)
        call = self._call
        self._awaited = True
        try:
            await _wait(call, lambda: bool(call.ready))
        except BaseException:  # a cancellation
            await self.aclose()
            raise
        finally:
            self._awaited = False
        if call.ready and not self._closed:
            return call.ready.popleft()
        closed, self._closed = self._closed, True
        if call.error is not None and not closed:
            raise call.error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Abort what has not ended; returns when its pages are free."""
        closed, self._closed = self._closed, True
        if self._call is not None and not closed:
            self._callers.abort(self._call)
            await _wait(self._call, lambda: False)
            self._call.ready.clear()

    def __del__(self) -> None:
        if self._call is not None and not self._closed:
            self._callers.abort(self._call)


async def _wait(call: _Call[Any], ready: Callable[[], bool]) -> None:
    """Until `ready`, or until the call has ended."""
    while not ready() and not call.ended:
        waiter = asyncio.get_running_loop().create_future()
        call.waiters.append(waiter)
        try:
            if not ready() and not call.ended:  # again: the thread may just have looked for waiters
                await waiter
        finally:
            call.waiters.remove(waiter)
