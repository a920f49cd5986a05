"""Several engines as one: requests go to whichever has room, and where one fails, to the others."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from jbatch.config import UpdateMode, plain
from jbatch.engine.description import describe_engine
from jbatch.engine.engine import Engine
from jbatch.engine.intake import Asked, ScheduleFields, schedule_of
from jbatch.engine.merged import merged
from jbatch.engine.metric import Gauge, Metric
from jbatch.engine.records import EngineStep
from jbatch.engine.rounds import Rounds
from jbatch.engine.turn import STEP, Turn
from jbatch.errors import ConfigError, JBatchError
from jbatch.host.metrics import Summary
from jbatch.host.request import Request
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import RequestOutput
from jbatch.sampling_params import SamplingParams
from jbatch.seam.runner import Runner
from jbatch.seam.tenancy import Tenancy

if TYPE_CHECKING:  # it needs this module
    from jbatch.engine.driver import Driver


class Replicas:
    """Engines on devices of their own, used like one Engine: add requests, then step while there are any.

    Requests wait in one queue, in the order of their policy, until a replica has room. One that raises gets
    nothing more until all requests have ended. What it had is computed anew by the others, from the same
    seeds; tokens that were handed out are not handed out again. Where the last one fails, every request ends
    with an error and `step` raises.

    As of an Engine: one thread steps it; `add_request` and `abort` may be called from any.

    Args:
      engines: alike but for their devices, with one intake, and used by nobody else.
    """

    def __init__(self, engines: Sequence[Engine], *, sleep: Callable[[float], None] = time.sleep):
        self.engines = tuple(engines)
        self.intake, self.clock = engines[0].intake, engines[0].clock
        self.tokenizer = self.intake.tokenizer
        self.tenancy = Tenancy()
        self.driver: Driver | None = None
        self._turn, self._request_idx = Turn(), itertools.count()
        self._rounds = Rounds(self.engines, self.clock, sleep)

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
    def summary(self) -> Summary:
        """Of all steps."""
        return self._rounds.summary

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
            return dataclasses.replace(metric, value=metric.value + self._rounds.placed.num_waiting)
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
        asked = Asked(index, request_idx, first_scored, cache_salt, schedule_of(schedule))
        request = first.checked(request_id, prompt, params or SamplingParams(), asked)
        key = first.scheduler.key_of(request)
        with self._rounds.lock:
            self._check_caller()  # again: someone may have come
            self._rounds.add(request, key)
        return request

    def abort(self, request_id: str) -> None:
        """As `Engine.abort`."""
        self.tenancy.check_process()
        self._rounds.abort(request_id)

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return self._rounds.num_unfinished

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` still has something to do."""
        return self._rounds.has_unfinished

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
            return self._rounds.step()
        finally:
            self._turn.leave()

    def update(self, replace: Sequence[Callable[[], None]], mode: UpdateMode) -> None:
        """As `Engine.update`, one replica after the other; `replace` has a function for each.

        Raises ConfigError for mode "wait"."""
        self.tenancy.check_process()
        if mode == "wait":
            raise ConfigError(
                "mode", mode, "not with several replicas: let all end first, or take another mode"
            )
        if mode == "abort":
            for placed in self._rounds.placed.all():
                self.abort(placed.request.request_id)
        for engine, replace_one in zip(self.engines, replace, strict=True):
            engine.update(replace_one, "retract")

    def tidy(self) -> bool:
        """As `Engine.tidy`."""
        self.tenancy.check_process()
        if not self._turn.take("add_request or abort", sys._getframe()):
            return False
        try:
            self._rounds.reconcile()
        finally:
            self._turn.leave()
        return True

    def set_aside(self) -> dict[int, RequestOutput]:
        """As `Engine.set_aside`."""
        return self._rounds.set_aside()

    def give_back(self, aside: dict[int, RequestOutput]) -> None:
        """As `Engine.give_back`."""
        self._rounds.give_back(aside)

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
