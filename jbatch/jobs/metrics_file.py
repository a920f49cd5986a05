"""The metrics of a job in a file, for Prometheus' node exporter: replaced as a whole every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from jbatch.engine.exposition import to_text
from jbatch.engine.metric import Metric
from jbatch.errors import describe_os_error
from jbatch.jobs.files import replacing

EVERY_S = 5.0


class MetricsFile:
    """Writes the metrics between two steps, once they are due. Where that fails the job goes on: it says so
    once, and tries again.

    Args:
      path: None: nothing is written.
    """

    def __init__(
        self,
        path: str | None,
        read: Callable[[], Iterable[Metric]],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path, self._read, self._say, self._clock = path, read, say, clock
        self._due = 0.0 if path is not None else float("inf")
        self._has_failed = False

    def on_step(self) -> None:
        """Write, if it is time."""
        if self._clock() >= self._due:
            self.write()

    def write(self) -> None:
        """Write what is known now."""
        if self._path is None:
            return
        try:
            with replacing(self._path, lasting=False) as file:
                file.write(to_text(self._read()).encode())
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                self._say(f"warning: no metrics are written: {describe_os_error(error)}")
        self._due = self._clock() + EVERY_S
