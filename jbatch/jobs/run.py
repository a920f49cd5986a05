"""One run of a job: its files are opened and checked, the lines that are left answered, the output sorted."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, BinaryIO, NamedTuple

from jbatch.errors import JobError
from jbatch.host.metrics import Summary
from jbatch.jobs.answerer import Answerer, refuse
from jbatch.jobs.eta import TokensLeft
from jbatch.jobs.files import locked, remove_leftover
from jbatch.jobs.input import InputLine, Parse, Scan, open_input, read_lines, scan_input
from jbatch.jobs.ledger import Ledger
from jbatch.jobs.loop import Job
from jbatch.jobs.options import JobOptions
from jbatch.jobs.output import Output, OutputFile, OutputStream, remove_torn
from jbatch.jobs.report import RunReport, Say, advice, describe_input
from jbatch.jobs.request_line import LineError
from jbatch.jobs.resume import Done, drop_errors, find_done, sort_by_line
from jbatch.jobs.signals import StopSignals
from jbatch.jobs.state import JobState, check_state, keep_room, known_room, save_state
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
    if options.summary_path is not None:
        _check_writable(options.summary_path)  # now, rather than after the work
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals(say, _exit_at_once))
        if not options.streams:
            stack.enter_context(locked(options.output_path))
        source = stack.enter_context(open_input(options.input))
        identity = _identity(source)
        scan = _scan(command, source)
        say(describe_input(options, scan))
        if command.model_defaults:
            say(describe_model_defaults(command.model_defaults))
        output, done = _open_output(command, scan, stack)
        ledger = Ledger(output, done, JobSummary(command.model_defaults))
        try:
            return _Run(command, source, identity, scan, ledger, stop).finish()
        except _Stopped as error:
            say(str(error))
            return STOPPED


def _check_writable(path: str) -> None:
    """Raise OSError where a file cannot be written; nothing is changed, and nothing is left behind."""
    is_new = not os.path.exists(path)
    open(path, "a").close()
    if is_new:
        os.unlink(path)


def _scan(command: JobCommand, source: BinaryIO) -> Scan:
    size = os.fstat(source.fileno()).st_size
    with progress_bar("checking", size) as update:
        shard = command.options.parsed_shard
        return scan_input(source, command.parse, shard, lambda at: update(at, "bytes"))


def _open_output(command: JobCommand, scan: Scan, stack: ExitStack) -> tuple[Output, Done]:
    """The output, and what is in it. Raises ConfigError where it belongs to another job."""
    options, say = command.options, command.say
    if options.streams:
        say("the output cannot be read back: if this run is ended, the next one begins anew")
        name = "standard output" if options.output_file == "-" else str(options.output_file)
        fd = 1 if options.output_file == "-" else os.open(name, os.O_WRONLY)
        return OutputStream(fd, name), Done(scan.last_line_no)
    path = options.output_path
    state = command.state_of(scan.sha256)
    if os.path.exists(path) and os.path.getsize(path) and not options.force:
        check_state(path, state)
        state = dataclasses.replace(state, room=known_room(path))
    done = Done(scan.last_line_no)
    remove_leftover(path)
    if os.path.exists(path):
        if options.retry_errors and (dropped := drop_errors(path)):
            say(f"removed {dropped} error results: their lines run again")
        done = find_done(path, scan.ids, scan.last_line_no)
        if torn := remove_torn(path):  # only now is it known to be a job's
            say(f"removed a torn result of {torn} bytes from the end of {options.output_file}")
    save_state(path, state)
    output = OutputFile(path)
    stack.callback(output.close)
    if done.num_done:
        say(f"going on: {done.num_done} of {scan.num_requests} have their results")
    if done.foreign:
        say(f"{len(done.foreign)} results are of no line of this input: they stay")
    return output, done


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
    stop: StopSignals

    def finish(self) -> int:
        """Answer what is left, say what was done, and sort; the exit code. Raises _Stopped."""
        options, done, scan = self.command.options, self.ledger.done, self.scan
        try:
            if done.num_done == scan.num_requests:
                self.command.say("nothing is left to do")
            elif scan.num_wrong == scan.num_requests:
                self._refuse_all()
            else:
                with self.command.load(scan) as answerer:
                    if scan.num_by_room:
                        self._check_room(answerer)
                    complete = self._answer_and_report(answerer)
                if not complete:
                    return self.stop.exit_code
            if options.ordered:
                sort_by_line(options.output_path, done)
        except (JobError, OSError) as error:
            raise _Stopped(f"{error}. {advice(options)}") from error
        return SOME_ERRORS if done.num_errors else ALL_ANSWERED

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

    def _check_room(self, answerer: Answerer) -> None:
        """For lines without max_tokens: where they end is a part of what the results depend on."""
        scheduler = answerer.engine.scheduler
        room = scheduler.max_seq_len
        if room < scheduler.config.max_model_len:
            self.command.say(
                f"warning: {self.scan.num_by_room} outputs without max_tokens are cut at {room} tokens, "
                "prompt included: what the cache holds"
            )
        if not self.command.options.streams:
            state = self.command.state_of(self.scan.sha256)
            keep_room(self.command.options.output_path, state, room)

    def _answer_and_report(self, answerer: Answerer) -> bool:
        """Run the loop, and say what was done, also where it fails; whether it came to its end."""
        report = RunReport(self.ledger, self.command.say)
        try:
            return self._answer(answerer, report)
        finally:
            summary_path = self.command.options.summary_path
            report.end(answerer.engine.summary, answerer.compilations(), summary_path)

    def _answer(self, answerer: Answerer, report: RunReport) -> bool:
        """Run the loop, with a progress bar; whether it came to its end."""
        scan = self.scan
        room = answerer.engine.scheduler.max_seq_len
        mean_bound = (scan.max_tokens + scan.num_unbounded * room) / max(1, scan.num_requests)
        tokens_left = TokensLeft(mean_bound, scan.num_requests - self.ledger.done.num_done)
        job = Job(answerer, self.ledger, tokens_left)
        with progress_bar("generating", scan.num_requests) as update:
            self.stop.graceful = True
            try:
                on_step = functools.partial(report.on_step, update, tokens_left)
                complete = job.run(self._lines_left(), self.stop.stopped, on_step)
                self._check_written()
                report.show(update, tokens_left)
            finally:
                self.stop.graceful = False
        return complete

    def _lines_left(self) -> Iterator[InputLine]:
        """The lines of the shard that have no result."""
        in_shard = self.command.options.parsed_shard.holds
        self.source.seek(0)
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


def _exit_at_once(code: int) -> None:
    show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides it
    os.write(2, show_cursor + b"jbatch: interrupted\n")
    os._exit(code)
