"""One run of a job: its files are opened and checked, the lines that are left answered, the output sorted."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

from jbatch.errors import JobError, describe_os_error
from jbatch.host.metrics import Summary
from jbatch.jobs.answerer import Answerer, refuse
from jbatch.jobs.eta import TokensLeft
from jbatch.jobs.files import check_replaceable, naming
from jbatch.jobs.input import InputLine, Parse, Scan, open_input, read_lines, scan_input
from jbatch.jobs.ledger import Ledger
from jbatch.jobs.lock import locked
from jbatch.jobs.lookahead import in_groups
from jbatch.jobs.loop import Job
from jbatch.jobs.metrics_file import MetricsFile
from jbatch.jobs.opening import open_output
from jbatch.jobs.options import JobOptions
from jbatch.jobs.output import OutputFile
from jbatch.jobs.past_summary import figures_of_output, is_summary_of
from jbatch.jobs.report import RunReport, Say, describe_end, describe_input, write_summary
from jbatch.jobs.request_line import LineError
from jbatch.jobs.resume import sort_by_line
from jbatch.jobs.signals import StopSignals, exit_at_once
from jbatch.jobs.state import JobState, keep_of_model
from jbatch.jobs.summary import JobSummary
from jbatch.model_dir.generation_json import describe_model_defaults
from jbatch.progress import progress_bar

ALL_ANSWERED, SOME_ERRORS, STOPPED = 0, 1, 3  # exit codes, besides 2 (refused) and 128 + signal


class JobCommand(NamedTuple):
    """One call of the command, checked."""

    options: JobOptions
    state_of: Callable[[str], JobState]  # from the input's sha256
    parse: Parse
    load: Callable[[Scan], AbstractContextManager[Answerer]]  # not called where nothing is left to do
    say: Say
    model_defaults: Mapping[str, Any] = {}  # sampling parameters that the model sets, where lines do not


def run_command(command: JobCommand) -> int:
    """Run a job with everything around it; the exit code (see `run_generate`)."""
    options, say = command.options, command.say
    for path in options.replaced.values():
        check_replaceable(path)  # now, rather than after the work
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals(say, exit_at_once))
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
        ledger = Ledger(opened.output, opened.done, JobSummary(command.model_defaults))
        try:
            return _Run(command, source, identity, scan, ledger, opened.file, stop).finish()
        except _Stopped as error:
            say(str(error))
            return STOPPED


def _scan(command: JobCommand, source: BinaryIO) -> Scan:
    size = os.fstat(source.fileno()).st_size
    with progress_bar("checking", size) as update:
        shard = command.options.parsed_shard
        return scan_input(source, command.parse, shard, lambda at: update(at, "bytes"))


class _Stopped(Exception):
    """What ends a job that has begun: a failure, and what to do about it."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run whose files are open."""

    command: JobCommand
    source: BinaryIO
    source_identity: tuple[int, ...]  # before it was read
    scan: Scan
    ledger: Ledger
    file: OutputFile | None  # the output, where it can be read back
    stop: StopSignals

    def finish(self) -> int:
        """Answer what is left, say what was done, and sort; the exit code. Raises _Stopped."""
        options, done, scan = self.command.options, self.ledger.done, self.scan
        try:
            if done.num_done == scan.num_requests:
                self.command.say("nothing is left to do")
                self._make_up_summary()
            elif scan.num_wrong == scan.num_requests:
                self._refuse_all()
            else:
                with self.command.load(scan) as answerer:
                    self._check_model(answerer)
                    answerer.prepare()
                    with self._traced(answerer):
                        complete = self._answer_and_report(answerer)
                if not complete:
                    return self.stop.exit_code
            if options.ordered and self.file is not None:
                sort_by_line(self.file.path, done, self.file.check)
        except (JobError, OSError) as error:
            raise _Stopped(describe_end(error, options)) from error
        return SOME_ERRORS if done.num_errors else ALL_ANSWERED

    @contextmanager
    def _traced(self, answerer: Answerer) -> Iterator[None]:
        """Write a trace meanwhile, where one is asked for. Where that fails the job goes on without it."""
        path = self.command.options.trace_path
        if path is None:
            yield
            return
        trace = answerer.engine.trace_to(path)
        try:
            yield
        finally:
            trace.close()
            if trace.error is not None:
                self.command.say(f"warning: the trace {path} is not whole: {describe_os_error(trace.error)}")

    def _refuse_all(self) -> None:
        """Answer an input in which every line is wrong. No model is loaded for that."""
        report = RunReport(self.ledger, self.command.say)
        for line in self._lines_left():
            try:
                self.command.parse(line.raw)
            except LineError as error:
                self.ledger.write(refuse(line, error))
        self._check_written()
        report.end(Summary(), 0, self.command.options.summary_path)

    def _make_up_summary(self) -> None:
        """Write the summary that an earlier run could not write, as on a full disk, from the results."""
        path = self.command.options.summary_path
        if path is None or self.file is None or is_summary_of(path, self.ledger.done):
            return
        self.file.check()
        write_summary(path, figures_of_output(self.file.path, self.ledger.done))
        self.command.say(f"wrote {self.command.options.summary} from the results that are there")

    def _check_model(self, answerer: Answerer) -> None:
        """What is known only now, and is a part of what the results depend on: where lines without max_tokens
        end, and what computes."""
        scheduler = answerer.engine.scheduler
        room = scheduler.max_seq_len if self.scan.num_by_room else None
        if room is not None and room < scheduler.config.max_model_len:
            self.command.say(
                f"warning: {self.scan.num_by_room} outputs without max_tokens are cut at {room} tokens, "
                "prompt included: what the cache holds"
            )
        if self.file is not None:
            state = self.command.state_of(self.scan.sha256)
            keep_of_model(self.file.path, state, room, dict(answerer.numerics))

    def _answer_and_report(self, answerer: Answerer) -> bool:
        """Run the loop, and say what was done, also where it fails; whether it came to its end."""
        report = RunReport(self.ledger, self.command.say)
        summary_path = self.command.options.summary_path
        try:
            complete = self._answer(answerer, report)
        except Exception:
            with suppress(OSError):  # what stopped the job is what is said
                report.end(answerer.engine.summary, answerer.compilations(), summary_path)
            raise
        report.end(answerer.engine.summary, answerer.compilations(), summary_path)
        return complete

    def _answer(self, answerer: Answerer, report: RunReport) -> bool:
        """Run the loop, with a progress bar; whether it came to its end."""
        scan = self.scan
        room = answerer.engine.scheduler.max_seq_len
        mean_bound = (scan.max_tokens + scan.num_unbounded * room) / max(1, scan.num_requests)
        tokens_left = TokensLeft(mean_bound, scan.num_requests - self.ledger.done.num_done)
        job = Job(answerer, self.ledger, tokens_left)
        metrics = MetricsFile(self.command.options.metrics_path, answerer.metrics, self.command.say)
        with progress_bar("generating", scan.num_requests) as update:
            self.stop.graceful = True
            try:

                def on_step() -> None:
                    report.on_step(update, tokens_left)
                    metrics.on_step()

                complete = job.run(self._in_order(answerer), self.stop.stopped, on_step)
                self._check_written()
                report.show(update, tokens_left)
            finally:
                self.stop.graceful = False
                metrics.write()
        return complete

    def _in_order(self, answerer: Answerer) -> Iterator[InputLine]:
        """The lines that are left, as they go to the engine."""
        caching = answerer.engine.scheduler.config.enable_prefix_caching
        return in_groups(self._lines_left(), self.command.options.lookahead if caching else 1)

    def _lines_left(self) -> Iterator[InputLine]:
        """The lines of the shard that have no result."""
        in_shard = self.command.options.parsed_shard.holds
        self.source.seek(0)
        with naming(self.command.options.input):
            for line in read_lines(self.source):
                if line.line_no > self.scan.last_line_no:
                    self._check_unchanged()
                if in_shard(line.line_no) and line.line_no not in self.ledger.done:
                    yield line

    def _check_written(self) -> None:
        """Raise OSError where results do not reach the disk, _Stopped where they may be of other lines."""
        self.ledger.output.sync(now=True)
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        """Raise _Stopped where the input was written to while it was read."""
        if _identity(self.source) != self.source_identity:
            raise _Stopped(
                "the input changed while the job ran, so results may be of other lines: start anew"
            )


def _identity(file: BinaryIO) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns
