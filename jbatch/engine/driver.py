"""Who drives an engine: one at a time, or one's steps would take another's outputs."""

from __future__ import annotations

from collections.abc import Callable

from jbatch.engine.engine import Engine, EngineStep
from jbatch.engine.prompts import UncheckedRequest
from jbatch.errors import JBatchError
from jbatch.outputs import RequestOutput


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

    def __init__(self, engine: Engine, name: str, settle: Callable[[], None] = lambda: None):
        self.engine, self.name, self._settle = engine, name, settle
        self.unfinished: set[str] = set()
        self.left = False

    def begin(self) -> None:
        """Raise JBatchError while someone else drives, or has requests in the engine."""
        if self.engine.driver is not None and not self.engine.driver.left:
            self.engine.driver._settle()
        with self.engine.driver_lock:
            other = self.engine.driver
            if other is not None:
                if not other.left:
                    raise JBatchError(_refusal(len(other.unfinished), other.name))
                other.leave()  # an interrupt kept it from that
            self.engine.mend()
            if self.engine.num_unfinished:
                raise JBatchError(
                    f"the engine has {self.engine.num_unfinished} unfinished requests: step it first"
                )
            self.engine.driver = self

    def add(self, request: UncheckedRequest) -> RequestOutput | None:
        """Queue a request; its output, where it is refused."""
        self.unfinished.add(request.request_id)
        refused = request.add_to(self.engine)
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
        step = self.engine.step()
        self.unfinished.difference_update(output.request_id for output in step.outputs)
        return step

    def leave(self) -> None:
        """Abort what has not ended, and leave the engine idle, but for requests that were added by hand."""
        self.left = True
        with self.engine.driver_lock:
            if self.engine.driver is not self:
                return
            for request_id in self.unfinished:
                self.engine.abort(request_id)
            while self.engine.has_unfinished and not self.engine.num_unfinished:
                self.engine.step()  # what is in flight, and the outputs of the aborted
            self.engine.driver = None


def _refusal(num: int, name: str) -> str:
    return (
        f"{name} has the engine, with {num} unfinished requests: let it end, or leave it first; calls of "
        "astream and agenerate share one, any number of them, and no others do"
    )
