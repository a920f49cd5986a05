"""Who drives an engine: one at a time, or one's steps would take another's outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from jbatch.engine.prompts import UncheckedRequest
from jbatch.engine.records import EngineStep
from jbatch.engine.replicas import AnyEngine
from jbatch.errors import JBatchError
from jbatch.outputs import RequestOutput

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Driver:
    """Adds requests to an engine and steps it until they have ended:

        driver = Driver(engine, "generate")
        try:
            driver.begin()
            ...  # add, and step while there are unfinished ones
        finally:
            driver.left = True
            driver.leave()

    `left` is set by itself, and first: a signal cannot come between. A second one, in `leave`, does no harm,
    for the next driver does what was left to do.

    Args:
      name: what the caller called.
      settle: called by the next driver before it is refused: waits where this one is about to leave.

    Attributes:
      unfinished: the ids of its requests that have not ended.
    """

    def __init__(self, engine: AnyEngine, name: str, settle: Callable[[], None] = lambda: None):
        self.engine, self.name, self._settle = engine, name, settle
        self.unfinished: set[str] = set()
        self.left = False
        self._aside: Any = None  # what ended before, of requests by hand
        self._calling: int | None = None  # the thread in which it calls the engine, while it does

    def begin(self) -> None:
        """Raise JBatchError while someone else drives, or has requests in this engine or in another one on
        the same device state; in a forked process; and after `LLM.close`."""
        self.engine.tenancy.check_process()
        self.engine.check_open()
        if self.engine.driver is not None and not self.engine.driver.left:
            self.engine.driver._settle()
        with self.engine.tenancy.lock:
            if self.engine.driver is not None:
                self.engine.driver.check_caller()
            if not self.engine.tidy():
                raise JBatchError("a step of the engine is under way, in another thread or around this call")
            if self.engine.num_unfinished:
                raise JBatchError(
                    f"the engine has {self.engine.num_unfinished} unfinished requests: step it first"
                )
            self.engine.tenancy.take(self.engine)
            self.engine.driver = self
            self._aside = self.engine.set_aside()

    def check_caller(self) -> None:
        """Raise JBatchError for a call of the engine that is not this driver's. One that an interrupt kept
        from leaving leaves now."""
        if self._calling == threading.get_ident():
            return
        if not self.left:
            raise JBatchError(_refusal(len(self.unfinished), self.name))
        self.leave()

    def add(self, request: UncheckedRequest) -> RequestOutput | None:
        """Queue a request; its output, where it is refused."""
        self.unfinished.add(request.request_id)
        refused = self.call(request.add_to, self.engine)
        if refused is not None:
            self.unfinished.discard(request.request_id)
        return refused

    def step(self) -> EngineStep:
        """The engine's next step. Raises what it raises, and JBatchError where someone else took outputs."""
        if self.unfinished and not self.engine.has_unfinished:
            raise JBatchError(
                f"{len(self.unfinished)} requests of {self.name} ended in another's step: "
                "one at a time may drive an engine"
            )
        step = self.call(self.engine.step)
        self.unfinished.difference_update(output.request_id for output in step.outputs)
        return step

    def leave(self) -> None:
        """Abort what has not ended, and leave the engine idle, but for outputs that were there before."""
        self.left = True
        if self.engine.tenancy.forked:
            return
        with self.engine.tenancy.lock:
            if self.engine.driver is not self:
                return
            if self.engine.closed:  # with all that ran
                self.engine.driver = None
                return
            for request_id in self.unfinished:
                self.engine.abort(request_id)
            while self.engine.has_unfinished and not self.engine.num_unfinished:
                self.call(self.engine.step)  # what is in flight, and the outputs of the aborted
            if self._aside is not None:
                self.engine.give_back(self._aside)
            self.engine.driver = None

    def call(self, method: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Call the engine as its driver."""
        self._calling = threading.get_ident()
        try:
            return method(*args, **kwargs)
        finally:
            self._calling = None


def _refusal(num: int, name: str) -> str:
    return (
        f"{name} has the engine, with {num} unfinished requests: let it end, or leave it first; calls of "
        "astream and agenerate share one, any number of them, and no others do"
    )
