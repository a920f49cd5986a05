"""Counts XLA compilations, so that "nothing recompiles" is a measurement."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """How many programs this process has compiled, or read from the persistent cache, since it was made.

    Attributes:
      count: all of them.
      outside: of these, those that runners compiled outside of a run. One runner's are not another's fault.
    """

    def __init__(self) -> None:
        self.count = self.outside = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    @contextlib.contextmanager
    def compiling(self, *, in_run: bool) -> Iterator[None]:
        """What is compiled within it belongs to a run, or to none."""
        before = self.count
        yield
        if not in_run:
            self.outside += self.count - before

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == _COMPILED


@functools.cache  # JAX has no public way to take a listener back
def compile_counter() -> CompileCounter:
    """The process's one counter."""
    return CompileCounter()
