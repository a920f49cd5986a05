"""A job whose files are open: the lines that are left of its input, and where their results go."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, BinaryIO, NamedTuple

from jbatch.errors import JobError
from jbatch.jobs.answerer import Answerer, refuse
from jbatch.jobs.files import check_replaceable, naming
from jbatch.jobs.input import InputLine, Parse, Scan, open_input, read_lines, scan_input
from jbatch.jobs.ledger import Ledger
from jbatch.jobs.lock import locked
from jbatch.jobs.opening import open_output
from jbatch.jobs.options import JobOptions
from jbatch.jobs.output import OutputFile
from jbatch.jobs.past_summary import figures_of_output, is_summary_of
from jbatch.jobs.report import Say, describe_end, describe_input, write_summary
from jbatch.jobs.request_line import LineError
from jbatch.jobs.resume import sort_by_line
from jbatch.jobs.state import JobState, keep_of_model
from jbatch.jobs.summary import JobSummary
from jbatch.model_dir.generation_json import describe_model_defaults
from jbatch.progress import progress_bar


class JobCommand(NamedTuple):
    """One call of the command, checked."""

    options: JobOptions
    state_of: Callable[[str], JobState]  # from the input's sha256
    parse: Parse
    load: Callable[[Scan], AbstractContextManager[Answerer]]  # not called where nothing is left to do
    say: Say
    model_defaults: Mapping[str, Any] = {}  # sampling parameters that the model sets, where lines do not


class JobStopped(Exception):
    """What ends a job that has begun: a failure, and what to do about it."""


class OfModel(NamedTuple):
    """What is known of a loaded model and is a part of what the results depend on."""

    room: int  # tokens of a sequence, prompt included
    max_model_len: int
    numerics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class OpenJob:
    """A run whose files are open."""

    command: JobCommand
    source: BinaryIO
    source_identity: tuple[int, ...]  # before it was read
    scan: Scan
    ledger: Ledger
    file: OutputFile | None  # the output, where it can be read back

    @property
    def is_done(self) -> bool:
        """Whether every line has its result."""
        return self.ledger.done.num_done == self.scan.num_requests

    @property
    def is_wrong(self) -> bool:
        """Whether no line can be served: no model is loaded for that."""
        return self.scan.num_wrong == self.scan.num_requests

    def lines_left(self) -> Iterator[InputLine]:
        """The lines of the shard that have no result."""
        in_shard = self.command.options.parsed_shard.holds
        self.source.seek(0)
        with naming(self.command.options.input):
            for line in read_lines(self.source):
                if line.line_no > self.scan.last_line_no:
                    self._check_unchanged()
                if in_shard(line.line_no) and line.line_no not in self.ledger.done:
                    yield line

    def refuse_all(self) -> None:
        """Answer an input in which every line is wrong."""
        for line in self.lines_left():
            try:
                self.command.parse(line.raw)
            except LineError as error:
                self.ledger.write(refuse(line, error))
        self.check_written()

    def check_model(self, model: OfModel) -> None:
        """What is known only once the model is loaded: where lines without max_tokens end, and what computes.

        Raises:
          ConfigError: where the results that are there come from another.
        """
        room = model.room if self.scan.num_by_room else None
        if room is not None and room < model.max_model_len:
            self.command.say(
                f"warning: {self.scan.num_by_room} outputs without max_tokens are cut at {room} tokens, "
                "prompt included: what the cache holds"
            )
        if self.file is not None:
            state = self.command.state_of(self.scan.sha256)
            keep_of_model(self.file.path, state, room, dict(model.numerics))

    def check_written(self) -> None:
        """Raise OSError where results do not reach the disk, JobStopped where they may be of other lines."""
        self.ledger.output.sync(now=True)
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        """Raise JobStopped where the input was written to while it was read."""
        if _identity(self.source) != self.source_identity:
            raise JobStopped(
                "the input changed while the job ran, so results may be of other lines: start anew"
            )

    def sort(self) -> None:
        """Put the results into the order of their lines, where that is asked for."""
        if self.command.options.ordered and self.file is not None:
            sort_by_line(self.file.path, self.ledger.done, self.file.check)

    def make_up_summary(self) -> None:
        """Write the summary that an earlier run could not write, as on a full disk, from the results."""
        path = self.command.options.summary_path
        if path is None or self.file is None or is_summary_of(path, self.ledger.done):
            return
        self.file.check()
        write_summary(path, figures_of_output(self.file.path, self.ledger.done))
        self.command.say(f"wrote {self.command.options.summary} from the results that are there")

    def stopped_by(self, error: JobError | OSError) -> JobStopped:
        """The end of this job by a failure."""
        return JobStopped(describe_end(error, self.command.options))


def open_job(command: JobCommand, stack: ExitStack, summary: JobSummary | None = None) -> OpenJob:
    """Open and check the files of a job, which `stack` closes.

    Args:
      summary: of several jobs, to be shared.

    Raises:
      ConfigError: for what is refused before it begins.
      OSError: for an input that cannot be read, or an output that cannot be opened.
    """
    options, say = command.options, command.say
    for path in options.replaced.values():
        check_replaceable(path)  # now, rather than after the work
    if not options.streams:
        stack.enter_context(locked(options.output_path))
    source = stack.enter_context(open_input(options.input))
    identity = _identity(source)
    with naming(options.input):
        scan = _scan(command, source)
    say(describe_input(options, scan))
    if command.model_defaults:
        say(describe_model_defaults(command.model_defaults))
    opened = open_output(options, command.state_of(scan.sha256), scan, say, stack)
    ledger = Ledger(opened.output, opened.done, summary or JobSummary(command.model_defaults))
    return OpenJob(command, source, identity, scan, ledger, opened.file)


def _scan(command: JobCommand, source: BinaryIO) -> Scan:
    size = os.fstat(source.fileno()).st_size
    with progress_bar("checking", size, "bytes") as update:
        shard = command.options.parsed_shard
        return scan_input(source, command.parse, shard, update)


def _identity(file: BinaryIO) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns
