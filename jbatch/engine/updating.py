"""Weights that change under requests: what becomes of those, and who waits for whom."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from jbatch.config import UpdateMode
from jbatch.engine.notes import Notes
from jbatch.engine.pipeline import NAP_S, Pipeline
from jbatch.engine.turn import DRAIN, Turn, is_running
from jbatch.errors import JBatchError


class Updates:
    """Updates of an engine's weights: one at a time, of any thread."""

    def __init__(
        self,
        turn: Turn,
        notes: Notes,
        pipeline: Pipeline,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._turn, self._notes, self._pipeline, self._sleep = turn, notes, pipeline, sleep
        self._mutex = threading.RLock()
        self._under_way: FrameType | None = None  # of one that no request spans

    def hold_back(self) -> bool:
        """Whether new requests wait for other weights."""
        return self._under_way is not None and is_running(self._under_way)

    def update(self, replace: Callable[[], None], mode: UpdateMode, tidy: Callable[[], bool]) -> None:
        """See `Engine.update`. `tidy` is the engine's."""
        if self._turn.is_mine:
            raise JBatchError("weights cannot change within a step of the engine: do it between two steps")
        with self._mutex:
            try:
                tidy()  # what was added before is not held back
                if mode != "retract":
                    self._under_way = sys._getframe()
                if mode == "wait":
                    self._drain(sys._getframe())
                elif mode == "abort":
                    for request_id in (*tuple(self._pipeline.requests.unfinished), *self._notes.new_ids):
                        self._notes.leave(request_id)
                        tidy()
                replace()
            finally:
                self._under_way = None

    def _drain(self, frame: FrameType) -> None:
        """Step until all requests have ended, but those that are held back; `frame` takes the turns."""
        while self._pipeline.requests.unfinished:
            if not self._turn.take(DRAIN, frame):
                self._sleep(NAP_S)  # the thread that steps does it
                continue
            try:
                self._notes.follow(self._pipeline, self.hold_back)
                self._pipeline.step(holds_back=self.hold_back())
            finally:
                self._turn.leave()
