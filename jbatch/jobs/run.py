"""One run of a job: its files are opened and checked, the lines that are left answered, the output sorted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from jbatch.engine.eta import TokensLeft
from jbatch.engine.replicas import single
from jbatch.errors import JobError, describe_os_error
from jbatch.host.metrics import Summary
from jbatch.jobs.answerer import Answerer
from jbatch.jobs.input import InputLine
from jbatch.jobs.lookahead import in_groups
from jbatch.jobs.loop import Job
from jbatch.jobs.metrics_file import MetricsFile
from jbatch.jobs.open_job import JobCommand, JobStopped, OfModel, OpenJob, open_job
from jbatch.jobs.report import RunReport
from jbatch.jobs.signals import StopSignals, exit_at_once
from jbatch.progress import progress_bar

ALL_ANSWERED, SOME_ERRORS, STOPPED = 0, 1, 3  # exit codes, besides 2 (refused) and 128 + signal


def run_command(command: JobCommand) -> int:
    """Run a job with everything around it; the exit code (see `run_generate`)."""
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals(command.say, exit_at_once))
        job = open_job(command, stack)
        try:
            return _Run(command, job, stop).finish()
        except JobStopped as error:
            command.say(str(error))
            return STOPPED


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run with an engine of its own."""

    command: JobCommand
    job: OpenJob
    stop: StopSignals

    def finish(self) -> int:
        """Answer what is left, say what was done, and sort; the exit code. Raises JobStopped."""
        job = self.job
        try:
            if job.is_done:
                self.command.say("nothing is left to do")
                job.make_up_summary()
            elif job.is_wrong:
                report = RunReport(job.ledger, self.command.say)
                job.refuse_all()
                report.end(Summary(), 0, self.command.options.summary_path)
            else:
                with self.command.load(job.scan) as answerer:
                    job.check_model(of_model(answerer))
                    answerer.prepare()
                    with self._traced(answerer):
                        complete = self._answer_and_report(answerer)
                if not complete:
                    return self.stop.exit_code
            job.sort()
        except (JobError, OSError) as error:
            raise job.stopped_by(error) from error
        return SOME_ERRORS if job.ledger.done.num_errors else ALL_ANSWERED

    @contextmanager
    def _traced(self, answerer: Answerer) -> Iterator[None]:
        """Write a trace meanwhile, where one is asked for. Where that fails the job goes on without it."""
        path = self.command.options.trace_path
        if path is None:
            yield
            return
        trace = single(answerer.engine, "a trace").trace_to(path)
        try:
            yield
        finally:
            trace.close()
            if trace.error is not None:
                self.command.say(f"warning: the trace {path} is not whole: {describe_os_error(trace.error)}")

    def _answer_and_report(self, answerer: Answerer) -> bool:
        """Run the loop, and say what was done, also where it fails; whether it came to its end."""
        report = RunReport(self.job.ledger, self.command.say)
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
        scan, ledger = self.job.scan, self.job.ledger
        room = answerer.engine.scheduler.max_seq_len
        mean_bound = (scan.max_tokens + scan.num_unbounded * room) / max(1, scan.num_requests)
        tokens_left = TokensLeft(mean_bound, scan.num_requests - ledger.done.num_done)
        loop = Job(answerer, ledger, tokens_left)
        metrics = MetricsFile(self.command.options.metrics_path, answerer.metrics, self.command.say)
        with progress_bar("generating", scan.num_requests, "requests") as update:
            self.stop.graceful = True
            try:

                def on_step() -> None:
                    report.on_step(update, tokens_left)
                    metrics.on_step()

                complete = loop.run(self._in_order(answerer), self.stop.stopped, on_step)
                self.job.check_written()
                report.show(update, tokens_left)
            finally:
                self.stop.graceful = False
                metrics.write()
        return complete

    def _in_order(self, answerer: Answerer) -> Iterator[InputLine]:
        """The lines that are left, as they go to the engine."""
        caching = answerer.engine.scheduler.config.enable_prefix_caching
        return in_groups(self.job.lines_left(), self.command.options.lookahead if caching else 1)


def of_model(answerer: Answerer) -> OfModel:
    """What a job's results depend on of a loaded model."""
    scheduler = answerer.engine.scheduler
    return OfModel(scheduler.max_seq_len, scheduler.config.max_model_len, dict(answerer.numerics))
