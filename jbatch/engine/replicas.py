"""Several engines as one: requests go to whichever has room, and where one fails, to the others.

All replicas are stepped by one thread, in turns: a step is launched on each before anyone waits for a result,
and a result is taken in when it is there. So the devices work at the same time, each at its own speed.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from jbatch.config import UpdateMode, plain
from jbatch.engine.description import describe_engine
from jbatch.engine.engine import Engine
from jbatch.engine.intake import Asked, Schedule, ScheduleFields
from jbatch.engine.merged import merged
from jbatch.engine.metric import Gauge, Metric
from jbatch.engine.placed import Placed, Placements
from jbatch.engine.records import EngineStep
from jbatch.engine.routing import choose
from jbatch.engine.sample import aborted_output, refused_output
from jbatch.engine.turn import STEP, Turn
from jbatch.errors import ConfigError, JBatchError, RequestError, UserFunctionError
from jbatch.host.metrics import Summary
from jbatch.host.request import Request
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import RequestOutput
from jbatch.sampling_params import SamplingParams
from jbatch.seam.runner import Runner
from jbatch.seam.tenancy import Tenancy

if TYPE_CHECKING:  # it needs this module
    from jbatch.engine.driver import Driver

NAP_S = 0.0002  # where every device is at work: a step takes longer
NOTHING = EngineStep(None, None, [], [])


class Replicas:
    """Engines on devices of their own, used like one Engine: add requests, then step while there are any.

    Requests wait in one queue, in the order of their policy, until a replica has room. One that raises gets
    nothing more until all requests have ended. What it had is computed anew by the others, from the same
    seeds; tokens that were handed out are not handed out again. Where the last one fails, every request ends
    with an error and `step` raises.

    As of an Engine: one thread steps it; `add_request` and `abort` may be called from any.

    Args:
      engines: alike but for their devices, with one intake, and used by nobody else.

    Attributes:
      summary: of all steps.
    """

    def __init__(self, engines: Sequence[Engine], *, sleep: Callable[[float], None] = time.sleep):
        self.engines = tuple(engines)
        self.intake, self.clock = engines[0].intake, engines[0].clock
        self.tokenizer = self.intake.tokenizer
        self.tenancy, self.summary = Tenancy(), Summary()
        self.driver: Driver | None = None
        self._turn, self._sleep = Turn(), sleep
        self._lock = threading.RLock()  # of the next three; never held for long
        self._placed = Placements(len(engines))
        self._ended: dict[int, RequestOutput] = {}  # by serial; not handed out yet
        self._failed: dict[int, Exception] = {}
        self._next = 0  # whose turn it is
        self._is_whole = True  # but within a step, and from where that was cut off
        self._request_idx, self._serials = itertools.count(), itertools.count()

    def __repr__(self) -> str:
        if self.closed:
            return "<Replicas: closed>"
        about = describe_engine(self.scheduler.config, self.num_rows, self.num_unfinished, self.summary)
        return f"<Replicas: {len(self.engines)} engines, together {about}>"

    @property
    def scheduler(self) -> Scheduler:
        """The first replica's: its configuration is that of all."""
        return self.engines[0].scheduler

    @property
    def runner(self) -> Runner[Any]:
        """The first replica's."""
        return self.engines[0].runner

    @property
    def num_rows(self) -> int:
        """Sequences that may run at once."""
        return sum(engine.num_rows for engine in self.engines)

    def metrics(self, compilations: int) -> list[Metric]:
        """As `Engine.metrics`, of all of them."""
        of_each = [
            engine.metrics(compilations if engine is self.engines[0] else 0) for engine in self.engines
        ]
        return [self._with_waiting(metric) for metric in merged(of_each)]

    def _with_waiting(self, metric: Metric) -> Metric:
        """Those that wait here wait, too."""
        if isinstance(metric, Gauge) and metric.name.endswith("num_requests_waiting"):
            return dataclasses.replace(metric, value=metric.value + self._placed.num_waiting)
        return metric

    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        index: int | None = None,
        request_idx: int | None = None,
        first_scored: int = 0,
        cache_salt: str | None = None,
        **schedule: Unpack[ScheduleFields],
    ) -> Request:
        """As `Engine.add_request`. Its seed is set here: what it draws does not depend on its replica."""
        self._check_caller()
        index = next(self._request_idx) if index is None else plain(index)
        first = self.engines[0]
        asked = Asked(index, request_idx, first_scored, cache_salt, Schedule(**schedule))
        request = first.checked(request_id, prompt, params or SamplingParams(), asked)
        key = first.scheduler.key_of(request)
        with self._lock:
            self._check_caller()  # again: someone may have come
            if self._placed.get(request_id) is not None:
                raise RequestError("request_id", request_id, "a request of this id has not ended yet")
            for engine in self.engines:
                with engine.tenancy.lock:
                    engine.tenancy.take(engine)
            if not self._placed:
                self._failed.clear()  # they may be well again
            self._placed.add(Placed(next(self._serials), request, key))
        return request

    def abort(self, request_id: str) -> None:
        """As `Engine.abort`."""
        self.tenancy.check_process()
        with self._lock:
            placed = self._placed.get(request_id)
            if placed is None:
                return
            placed.aborted = True
            if placed.replica is not None:
                self.engines[placed.replica].abort(request_id)
            else:
                self._end(aborted_output(placed.request, self.clock()))

    def _end(self, output: RequestOutput) -> None:
        """Have an output handed out, once."""
        if (placed := self._placed.get(output.request_id)) is not None:
            self._ended[placed.serial] = output
            self._placed.drop(output.request_id)

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        num_there = sum(engine.num_unfinished for engine in self.engines)
        return self._placed.num_waiting + num_there + sum(map(self._placed.num_at, tuple(self._failed)))

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to do."""
        return bool(self._placed or self._ended) or any(engine.has_unfinished for engine in self.engines)

    def step(self) -> EngineStep:
        """The next thing that a replica does: it launches a step, or takes in a result, or both. Where all
        are at work, it waits a moment.

        Raises:
          JBatchError: while another step is under way, in another thread or around this call.
          UserFunctionError: where the limits' function fails. All requests are as they were.
          Exception: what the last replica that worked raised.
        """
        self._check_caller()
        if not self._turn.take(STEP, sys._getframe()):
            raise JBatchError(
                "a step of this engine is under way, in another thread or around this call: one at a time"
            )
        try:
            return self._step()
        finally:
            self._turn.leave()

    def _step(self) -> EngineStep:
        """An exception may cut this off at any line: so it is noted whether it came to its end."""
        if not self._is_whole:
            for replica in range(len(self.engines)):
                self._reconcile(replica)
        self._is_whole = False
        step = self._next_step()
        self._is_whole = True
        return step

    def _reconcile(self, replica: int) -> None:
        """Find what ended at a replica. What it does not have, of those it should, waits again: where it
        failed, all. What had ended in a step that was cut off is computed again at worst."""
        engine, failed = self.engines[replica], replica in self._failed
        engine.tidy()
        aside = engine.set_aside()
        outputs = [*aside.outputs.values(), *(output for step in aside.steps for output in step.outputs)]
        with self._lock:
            for output in outputs:
                if output.error is None or not failed:
                    self._end(output)
            for placed in self._placed.at(replica):
                request_id = placed.request.request_id
                if placed.serial in self._ended or self._placed.get(request_id) is not placed:
                    self._placed.drop(request_id)
                elif not engine.has(request_id):
                    self._placed.let_wait(placed, replica)
                    if placed.aborted:
                        self._end(aborted_output(placed.request, self.clock()))

    def _next_step(self) -> EngineStep:
        for replica in self._failed:
            if self._placed.num_at(replica):
                self._reconcile(replica)
        self._feed()
        if self._ended:
            return NOTHING._replace(outputs=self._hand_out())
        for _ in self.engines:
            replica, self._next = self._next, (self._next + 1) % len(self.engines)
            engine = self.engines[replica]
            if replica in self._failed or not engine.has_unfinished:
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
        with self._lock:
            for serial, output in self._ended.items():  # where `_end` was cut off, it is there still
                placed = self._placed.get(output.request_id)
                if placed is not None and placed.serial == serial:
                    self._placed.drop(output.request_id)
            ended, self._ended = list(self._ended.values()), {}
        return ended

    def _note(self, step: EngineStep) -> EngineStep:
        """What is new of a replica's step."""
        if step.record is not None:
            self.summary = self.summary.with_step(step.record)
        new = []
        for progress in step.progress:
            placed = self._placed.get(progress.request_id)
            fresh = None if placed is None else placed.new_of(progress)
            if fresh is not None:
                new.append(fresh)
        with self._lock:
            for output in step.outputs:
                self._end(output)
        return step._replace(progress=new, outputs=self._hand_out())

    def _fail(self, replica: int, error: Exception) -> None:
        """Give a replica nothing more. Raises the error where it was the last one."""
        self._failed[replica] = error
        if len(self._failed) < len(self.engines):
            return
        self._failed.clear()
        self._reconcile(replica)
        reason = f"a step failed: {type(error).__name__}: {error}"
        with self._lock:
            for placed in self._placed.all():
                self._end(refused_output(placed.request, reason, self.clock()))
        raise error

    def _feed(self) -> None:
        """Give replicas what waits, as far as they have room."""
        there = [replica for replica in range(len(self.engines)) if replica not in self._failed]
        while True:
            with self._lock:  # another thread may be half through adding or aborting one
                placed = self._placed.first()
                if placed is None:
                    return
                if placed.aborted:  # by a call that was cut off
                    self._end(aborted_output(placed.request, self.clock()))
                    continue
                replica = choose(placed, self.engines, self._placed, there)
                if replica is None:
                    return
                self._placed.place(placed, replica)
                self.engines[replica].queue(placed.request, placed.key)

    def update(self, replace: Sequence[Callable[[], None]], mode: UpdateMode) -> None:
        """As `Engine.update`, one replica after the other; `replace` has a function for each.

        Raises ConfigError for mode "wait"."""
        self.tenancy.check_process()
        if mode == "wait":
            raise ConfigError(
                "mode", mode, "not with several replicas: let all end first, or take another mode"
            )
        if mode == "abort":
            for placed in self._placed.all():
                self.abort(placed.request.request_id)
        for engine, replace_one in zip(self.engines, replace, strict=True):
            engine.update(replace_one, "retract")

    def tidy(self) -> bool:
        """As `Engine.tidy`."""
        self.tenancy.check_process()
        if not self._turn.take("add_request or abort", sys._getframe()):
            return False
        try:
            for replica in range(len(self.engines)):
                self._reconcile(replica)
        finally:
            self._turn.leave()
        return True

    def set_aside(self) -> dict[int, RequestOutput]:
        """As `Engine.set_aside`."""
        aside, self._ended = self._ended, {}
        return aside

    def give_back(self, aside: dict[int, RequestOutput]) -> None:
        """As `Engine.give_back`."""
        self._ended = aside | self._ended

    def reset_prefix_cache(self) -> bool:
        """As `Engine.reset_prefix_cache`, of all replicas."""
        self._check_caller()
        return not self.num_unfinished and all([engine.reset_prefix_cache() for engine in self.engines])

    def fork(self, *_: object, **__: object) -> NoReturn:
        """Refused: pages are of one engine."""
        raise _of_one_engine(self, "fork")

    def trace_to(self, *_: object, **__: object) -> NoReturn:
        """Refused: a trace is of one engine, each of `engines`."""
        raise _of_one_engine(self, "trace_to")

    @property
    def closed(self) -> bool:
        """As `Engine.closed`."""
        return self.engines[0].closed

    def check_open(self) -> None:
        """As `Engine.check_open`."""
        self.engines[0].check_open()

    def _check_caller(self) -> None:
        """Raise JBatchError in a forked process, after `LLM.close`, and while someone else drives."""
        self.tenancy.check_process()
        self.check_open()
        if self.driver is not None:
            self.driver.check_caller()


AnyEngine = Engine | Replicas  # what a call may drive


def single(engine: AnyEngine, what: str) -> Engine:
    """The engine. Raises ConfigError for what only one engine can do, where there are several."""
    if isinstance(engine, Engine):
        return engine
    raise _of_one_engine(engine, what)


def _of_one_engine(replicas: Replicas, what: str) -> ConfigError:
    reason = f"{what} is of one engine alone: use data_parallel_size=1"
    return ConfigError("data_parallel_size", len(replicas.engines), reason)
