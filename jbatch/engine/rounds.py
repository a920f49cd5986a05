"""Replicas' steps: who is next, who gets which request, and what becomes of all where one fails.

A step is launched on each replica before anyone waits for a result, and a result is taken in when it is
there. So the devices work at the same time, each at its own speed.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

from jbatch.engine.engine import Engine
from jbatch.engine.placed import Placed, Placements
from jbatch.engine.records import EngineStep
from jbatch.engine.routing import choose
from jbatch.engine.sample import aborted_output, refused_output
from jbatch.errors import RequestError, UserFunctionError
from jbatch.host.metrics import Summary
from jbatch.host.request import Key, Request
from jbatch.outputs import RequestOutput

NAP_S = 0.0002  # where every device is at work: a step takes longer
NOTHING = EngineStep(None, None, [], [])


class Rounds:
    """Several engines, stepped in turns by one thread. Any thread may `add` and `abort`.

    Attributes:
      placed: all requests that have not ended.
      failed: replicas that get nothing more, and why.
      lock: of these, and of what is not handed out yet; never held for long.
      summary: of all steps.
    """

    def __init__(self, engines: Sequence[Engine], clock: Callable[[], float], sleep: Callable[[float], None]):
        self._engines, self._clock, self._sleep = engines, clock, sleep
        self.lock = threading.RLock()
        self.placed, self.summary = Placements(len(engines)), Summary()
        self.failed: dict[int, Exception] = {}
        self._ended: dict[int, RequestOutput] = {}  # by serial; not handed out yet
        self._next = 0  # whose turn it is
        self._is_whole = True  # but within a step, and from where that was cut off
        self._serials = itertools.count()

    def add(self, request: Request, key: Key) -> None:
        """Let a request wait. Raises RequestError where there is one of its id."""
        with self.lock:
            if self.placed.get(request.request_id) is not None:
                raise RequestError("request_id", request.request_id, "a request of this id has not ended yet")
            for engine in self._engines:
                with engine.tenancy.lock:
                    engine.tenancy.take(engine)
            if not self.placed:
                self.failed.clear()  # they may be well again
            self.placed.add(Placed(next(self._serials), request, key))

    def abort(self, request_id: str) -> None:
        """End a request, wherever it is; of one that is unknown nothing."""
        with self.lock:
            placed = self.placed.get(request_id)
            if placed is None:
                return
            placed.aborted = True
            if placed.replica is not None:
                self._engines[placed.replica].abort(request_id)
            else:
                self._end(aborted_output(placed.request, self._clock()))

    def _end(self, output: RequestOutput) -> None:
        """Have an output handed out, once."""
        if (placed := self.placed.get(output.request_id)) is not None:
            self._ended[placed.serial] = output
            self.placed.drop(output.request_id)

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        num_there = sum(engine.num_unfinished for engine in self._engines)
        return self.placed.num_waiting + num_there + sum(map(self.placed.num_at, tuple(self.failed)))

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to do."""
        return bool(self.placed or self._ended) or any(engine.has_unfinished for engine in self._engines)

    def step(self) -> EngineStep:
        """See `Replicas.step`. An exception may cut this off at any line: so it is noted whether it came to
        its end."""
        if not self._is_whole:
            self.reconcile()
        self._is_whole = False
        step = self._next_step()
        self._is_whole = True
        return step

    def reconcile(self) -> None:
        """Find what ended at each replica, and let wait again what none has."""
        for replica in range(len(self._engines)):
            self._reconcile(replica)

    def _reconcile(self, replica: int) -> None:
        """Find what ended at a replica. What it does not have, of those it should, waits again: where it
        failed, all. What had ended in a step that was cut off is computed again at worst."""
        engine, failed = self._engines[replica], replica in self.failed
        engine.tidy()
        aside = engine.set_aside()
        outputs = [*aside.outputs.values(), *(output for step in aside.steps for output in step.outputs)]
        with self.lock:
            for output in outputs:
                if output.error is None or not failed:
                    self._end(output)
            for placed in self.placed.at(replica):
                request_id = placed.request.request_id
                if placed.serial in self._ended or self.placed.get(request_id) is not placed:
                    self.placed.drop(request_id)
                elif not engine.has(request_id):
                    self.placed.let_wait(placed, replica)
                    if placed.aborted:
                        self._end(aborted_output(placed.request, self._clock()))

    def _next_step(self) -> EngineStep:
        for replica in self.failed:
            if self.placed.num_at(replica):
                self._reconcile(replica)
        self._feed()
        if self._ended:
            return NOTHING._replace(outputs=self._hand_out())
        for _ in self._engines:
            replica, self._next = self._next, (self._next + 1) % len(self._engines)
            engine = self._engines[replica]
            if replica in self.failed or not engine.has_unfinished:
                continue
            try:
                step = engine.step(wait=False)
            except UserFunctionError:
                raise
            except Exception as error:
                self._fail(replica, error)
                break
            if step != NOTHING:
                return self._note(step)
        else:
            if self.has_unfinished:
                self._sleep(NAP_S)
        return NOTHING

    def _hand_out(self) -> list[RequestOutput]:
        with self.lock:
            for serial, output in self._ended.items():  # where `_end` was cut off, it is there still
                placed = self.placed.get(output.request_id)
                if placed is not None and placed.serial == serial:
                    self.placed.drop(output.request_id)
            ended, self._ended = list(self._ended.values()), {}
        return ended

    def _note(self, step: EngineStep) -> EngineStep:
        """What is new of a replica's step."""
        if step.record is not None:
            self.summary = self.summary.with_step(step.record)
        new = []
        for progress in step.progress:
            placed = self.placed.get(progress.request_id)
            fresh = None if placed is None else placed.new_of(progress)
            if fresh is not None:
                new.append(fresh)
        with self.lock:
            for output in step.outputs:
                self._end(output)
        return step._replace(progress=new, outputs=self._hand_out())

    def _fail(self, replica: int, error: Exception) -> None:
        """Give a replica nothing more. Raises the error where it was the last one."""
        self.failed[replica] = error
        if len(self.failed) < len(self._engines):
            return
        self.failed.clear()
        self._reconcile(replica)
        reason = f"a step failed: {type(error).__name__}: {error}"
        with self.lock:
            for placed in self.placed.all():
                self._end(refused_output(placed.request, reason, self._clock()))
        raise error

    def _feed(self) -> None:
        """Give replicas what waits, as far as they have room."""
        there = [replica for replica in range(len(self._engines)) if replica not in self.failed]
        while True:
            with self.lock:  # another thread may be half through adding or aborting one
                placed = self.placed.first()
                if placed is None:
                    return
                if placed.aborted:  # by a call that was cut off
                    self._end(aborted_output(placed.request, self._clock()))
                    continue
                replica = choose(placed, self._engines, self.placed, there)
                if replica is None:
                    return
                self.placed.place(placed, replica)
                self._engines[replica].queue(placed.request, placed.key)

    def set_aside(self) -> dict[int, RequestOutput]:
        """Take what no step has handed out yet; to be given back."""
        aside, self._ended = self._ended, {}
        return aside

    def give_back(self, aside: dict[int, RequestOutput]) -> None:
        """Hand out these with the next step, too."""
        self._ended = aside | self._ended
