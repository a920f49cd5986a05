"""Whose turn it is: one call at a time may change an engine, of whatever thread."""

from __future__ import annotations

import threading
import time
from types import FrameType
from typing import NamedTuple

STEP = "step"  # the one that takes long: nobody waits for it
DRAIN = "update"  # a step, too, of one that waits for requests to end: others wait for it
NAP_S = 0.0002  # of those


class _Call(NamedTuple):
    name: str
    frame: FrameType
    thread: int


class Turn:
    """At most one call is inside.

    It is known by its frame: one that an interrupt kept from leaving holds nobody up, for its frame has
    ended.
    """

    def __init__(self) -> None:
        self._inside: dict[str, _Call] = {}  # one or none; `setdefault` looks and goes in at once
        self._lock = threading.RLock()

    def take(self, name: str, frame: FrameType) -> bool:
        """Go in; False during a step, and where this thread is inside already. Others are so for a moment, or
        for a step of an update, and are waited for. Who goes in must `leave`.

        Args:
          frame: of the function that goes in and leaves.
        """
        call = _Call(name, frame, threading.get_ident())
        while (inside := self._inside.setdefault("call", call)) is not call:
            if not is_running(inside.frame):
                self._put_out(inside)
            elif inside.name == STEP or inside.thread == call.thread:
                return False
            else:
                time.sleep(NAP_S if inside.name == DRAIN else 0)
        return True

    @property
    def is_mine(self) -> bool:
        """Whether this thread is inside."""
        inside = self._inside.get("call")
        return inside is not None and inside.thread == threading.get_ident() and is_running(inside.frame)

    def leave(self) -> None:
        """Let the next one in."""
        self._inside.pop("call", None)

    def _put_out(self, call: _Call) -> None:
        """Forget a call that has ended, unless another thread just did."""
        with self._lock:
            if self._inside.get("call") is call:
                del self._inside["call"]


def is_running(frame: FrameType) -> bool:
    """Whether a function has not returned yet: Python clears no frame of one that runs."""
    try:
        frame.clear()
    except RuntimeError:
        return True
    return False
