"""What a job says to its user: what its input is, how far it has come, and what it did."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from jbatch import shown
from jbatch.engine.eta import TokensLeft
from jbatch.errors import JBatchError, JobError, OutputChanged, describe_os_error
from jbatch.host.metrics import Summary
from jbatch.jobs.files import replacing
from jbatch.jobs.input import Scan
from jbatch.jobs.ledger import Ledger
from jbatch.jobs.options import JobOptions
from jbatch.jobs.summary import describe, what_is_there
from jbatch.tracebacks import keep_traceback

SHOW_EVERY_S = 0.1
MIN_FOR_EARLY_WARNING = 100  # outputs

Say = Callable[[str], None]


def describe_input(options: JobOptions, scan: Scan) -> str:
    """How many requests there are, and how many of them are wrong."""
    lines = f"{scan.num_requests} request{'' if scan.num_requests == 1 else 's'}"
    if scan.num_requests != scan.num_lines:
        lines += f" (shard {options.shard} of {scan.num_lines})"
    return lines + (f", {scan.num_wrong} of them wrong" if scan.num_wrong else "")


def describe_end(error: JobError | OSError, options: JobOptions) -> str:
    """Why a job had to stop, and what a user can do then."""
    reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
    unforeseen = isinstance(error, JobError) and not isinstance(error.__cause__, JBatchError | None)
    kept = f". {keep_traceback(error)}" if unforeseen else ""
    return f"{reason}. {_advice(error, options)}{kept}"


def _advice(error: JobError | OSError, options: JobOptions) -> str:
    if isinstance(error, OutputChanged):
        return "What is in it stays: the same command goes on from there, or says why it cannot"
    if options.streams:
        return "Only whole results were written"
    return f"{options.output_file} holds whole results: the same command goes on from there"


def write_summary(path: str, figures: dict[str, Any]) -> None:
    """Write the figures of a run to a file. Raises OSError."""
    with replacing(path) as file:
        file.write(json.dumps(figures, indent=1, allow_nan=False).encode() + b"\n")


class RunReport:
    """Follows one run, from when this is made: a bar while it goes on, a warning, the figures at the end."""

    def __init__(self, ledger: Ledger, say: Say):
        self._ledger, self._say = ledger, say
        self._begin = self._shown_at = time.monotonic()
        self._has_warned = False

    def on_step(self, update: Callable[..., None], tokens_left: TokensLeft) -> None:
        """Move the bar, if it was not moved just now; warn early of outputs that are cut off."""
        if time.monotonic() - self._shown_at > SHOW_EVERY_S:
            self.show(update, tokens_left)
        if not self._has_warned and self._ledger.summary.num_may_end_early >= MIN_FOR_EARLY_WARNING:
            self._has_warned = self._warn_of_length()

    def show(self, update: Callable[..., None], tokens_left: TokensLeft) -> None:
        """Move the bar to where the run is."""
        self._shown_at = time.monotonic()
        update(self._ledger.done.num_done, tokens_left.note(self._shown_at - self._begin))

    def end(self, engine: Summary, compilations: int, summary_path: str | None) -> None:
        """Say what was done, and write the figures to a file where one is named. Raises OSError."""
        figures = self._ledger.summary.figures(engine, time.monotonic() - self._begin, compilations)
        for line in describe(figures):
            self._say(line)
        if self._ledger.summary.num_may_end_early < MIN_FOR_EARLY_WARNING:
            self._warn_of_length()
        if summary_path is not None:
            done = self._ledger.done
            write_summary(summary_path, figures | what_is_there(done.num_done, done.num_errors))

    def _warn_of_length(self) -> bool:
        """Warn where most outputs were cut off; whether that was so."""
        summary = self._ledger.summary
        if summary.mostly_length:
            cut_off = f"{summary.num_cut_off} of {shown.count(summary.num_may_end_early, 'output')}"
            self._say(f"warning: {cut_off} cut off by max_tokens or the end of the context")
        return summary.mostly_length
