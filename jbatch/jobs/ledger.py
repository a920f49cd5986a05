"""Where the results of a job go: into its output, and into what is counted of them."""

from __future__ import annotations

import dataclasses

from jbatch.jobs.answerer import LineResult
from jbatch.jobs.output import Output
from jbatch.jobs.resume import Done
from jbatch.jobs.summary import JobSummary


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Writes results, and keeps account of which lines have theirs and what this run did."""

    output: Output
    done: Done
    summary: JobSummary

    def write(self, result: LineResult) -> None:
        """Write a result, so that it outlives this process. Raises OSError."""
        offset = self.output.write(result.raw)
        self.done.add(result.line_no, offset, is_error=result.error_code is not None)
        if result.error_code is not None:
            self.summary.add_error(result.error_code, f"line {result.line_no}: {result.error}")
        else:
            self.summary.add(result.outputs, result.may_end_early)
