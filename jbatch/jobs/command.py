"""`jbatch generate MODEL -i in.jsonl -o out.jsonl`: joins the parts of a job, and talks to the user."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jbatch.config import EngineConfig
from jbatch.engine.engine import Engine
from jbatch.errors import JobError
from jbatch.host.metrics import Summary
from jbatch.host.scheduler import Scheduler
from jbatch.jobs.eta import TokensLeft
from jbatch.jobs.files import locked, remove_leftover, replacing
from jbatch.jobs.input import InputLine, Scan, id_of, open_input, read_lines, scan
from jbatch.jobs.loop import EncodeChat, Job, JobParts
from jbatch.jobs.options import JobOptions
from jbatch.jobs.output import Output, OutputFile, OutputStream, remove_torn
from jbatch.jobs.request_line import LineError, RequestLine, parse_line
from jbatch.jobs.results import dump, error_record
from jbatch.jobs.resume import Done, drop_errors, find_done, sort_by_line
from jbatch.jobs.signals import StopSignals
from jbatch.jobs.state import JobState, check_state, fingerprint, keep_room, known_room, save_state
from jbatch.jobs.summary import MIN_FOR_EARLY_WARNING, JobSummary, describe
from jbatch.model_dir.resolve import resolve_max_model_len, resolve_model
from jbatch.progress import progress_bar
from jbatch.sampling_params import SamplingParams

ALL_ANSWERED, SOME_ERRORS, STOPPED = 0, 1, 3  # exit codes, besides 2 (refused) and 128 + signal
REPORT_EVERY_S = 0.1
DEPENDS_ON = ("seed", "dtype", "max_model_len", "load_format")  # engine options that change the texts

Say = Callable[[str], None]


class Model(NamedTuple):
    """A loaded model, as far as a job needs it."""

    engine: Engine
    encode_chat: EncodeChat
    compilations: Callable[[], int]  # since it was loaded


class JobCommand(NamedTuple):
    """One call of the command, checked. `load(scan)` gives the model: it is not called where nothing is left
    to do."""

    options: JobOptions
    state_of: Callable[[str], JobState]  # from the input's sha256
    defaults: dict[str, Any]  # sampling parameters of lines that do not set them
    load: Callable[[Scan], Any]  # a context manager of a Model
    say: Say

    def parse(self, raw: bytes) -> RequestLine:
        """A line of the input. Raises LineError."""
        return parse_line(raw, self.defaults)


def run_generate(
    model: Path,
    engine_options: dict[str, Any],
    sampling_options: dict[str, Any],
    job_options: dict[str, Any],
    say: Say,
) -> int:
    """The exit code of `jbatch generate -i`: 0 where every line has an answer, 1 where some records are
    errors, 3 where the job had to stop, 130 and 143 after SIGINT and SIGTERM; all but the first two can go
    on with the same command.

    Raises:
      ConfigError: for what is refused before it begins.
      OSError: for an input that cannot be read, or an output that cannot be opened.
    """
    options = JobOptions(**job_options)
    config = EngineConfig(**engine_options)
    params = SamplingParams(**sampling_options)
    resolve_max_model_len(config, resolve_model(model, config))  # what LLM would refuse, before the input
    default = SamplingParams()
    changed = {
        name: getattr(params, name)
        for name in SamplingParams.__dataclass_fields__
        if getattr(params, name) != getattr(default, name)
    }
    files = fingerprint(model)

    def state_of(sha256: str) -> JobState:
        engine = {name: getattr(config, name) for name in DEPENDS_ON}
        return JobState(input=sha256, shard=options.shard, model=files, engine=engine, sampling=changed)

    load = functools.partial(_load, model, engine_options)
    return run_command(JobCommand(options, state_of, sampling_options, load, say))


@contextmanager
def _load(model: Path, engine_options: dict[str, Any], found: Scan) -> Iterator[Model]:
    """The real model."""
    from jbatch.llm import LLM  # loads jax

    options = dict(engine_options)
    options.setdefault("max_num_seqs", min(max(found.num_samples, 1), EngineConfig.max_num_seqs))
    options["samplers"] = [sampler.name.lower() for sampler in found.samplers] or ["greedy"]
    with LLM(model, **options) as llm:
        yield Model(llm.engine, llm.chat_token_ids, lambda: llm.runner.compilations_after_warmup)


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
        before = _identity(source)
        found = _scan(command, source)
        say(_describe_input(options, found))
        output, done = _open_output(command, found, stack)
        run = _Run(source, before, found, output, done, stop)
        try:
            return _run(command, run)
        except _Stopped as error:
            say(str(error))
            return STOPPED


def _check_writable(path: str) -> None:
    """Raise OSError where a file cannot be written; nothing is changed, and nothing is left behind."""
    is_new = not os.path.exists(path)
    open(path, "a").close()
    if is_new:
        os.unlink(path)


class _Stopped(Exception):
    """What ends a job that has begun: a failure, and what to do about it."""


class _Run(NamedTuple):
    """What is open while a job runs."""

    source: BinaryIO
    source_before: tuple[int, ...]
    found: Scan
    output: Output
    done: Done
    stop: StopSignals


def _scan(command: JobCommand, source: BinaryIO) -> Scan:
    size = os.fstat(source.fileno()).st_size
    with progress_bar("checking", size) as update:
        return scan(source, command.parse, command.options.parsed_shard, lambda at: update(at, "bytes"))


def _describe_input(options: JobOptions, found: Scan) -> str:
    lines = f"{found.num_requests} requests"
    if found.num_requests != found.num_lines:
        lines += f" (shard {options.shard} of {found.num_lines})"
    return lines + (f", {found.num_wrong} of them wrong" if found.num_wrong else "")


def _open_output(command: JobCommand, found: Scan, stack: ExitStack) -> tuple[Output, Done]:
    """The output, and what is in it. Raises ConfigError where it belongs to another job."""
    options, say = command.options, command.say
    if options.streams:
        say("the output cannot be read back: if this run is ended, the next one begins anew")
        name = "standard output" if options.output_file == "-" else str(options.output_file)
        fd = 1 if options.output_file == "-" else os.open(name, os.O_WRONLY)
        return OutputStream(fd, name), Done(found.last_line_no)
    path = options.output_path
    state = command.state_of(found.sha256)
    if os.path.exists(path) and os.path.getsize(path) and not options.force:
        check_state(path, state)
        state = dataclasses.replace(state, room=known_room(path))
    done = Done(found.last_line_no)
    remove_leftover(path)
    if os.path.exists(path):
        if options.retry_errors and (dropped := drop_errors(path)):
            say(f"removed {dropped} error records: their lines run again")
        done = find_done(path, found.ids, found.last_line_no)
        if torn := remove_torn(path):  # only now is it known to be a job's
            say(f"removed a torn record of {torn} bytes from the end of {options.output_file}")
    save_state(path, state)
    output = OutputFile(path)
    stack.callback(output.close)
    if done.num_done:
        say(f"going on: {done.num_done} of {found.num_requests} have their records")
    if done.foreign:
        say(f"{len(done.foreign)} records are of no line of this input: they stay")
    return output, done


def _run(command: JobCommand, run: _Run) -> int:
    """Answer what is left, say what was done, and sort; the exit code. Raises _Stopped."""
    options, done = command.options, run.done
    try:
        if done.num_done == run.found.num_requests:
            command.say("nothing is left to do")
        elif run.found.num_wrong == run.found.num_requests:
            _refuse_all(command, run)
        else:
            with command.load(run.found) as model:
                if run.found.num_unbounded:
                    _check_room(command, run.found, model.engine.scheduler)
                complete = _answer_and_report(command, run, model)
            if not complete:
                return run.stop.exit_code
        if options.ordered:
            sort_by_line(options.output_path, done)
    except (JobError, OSError) as error:
        raise _Stopped(f"{error}. {_advice(options)}") from error
    return SOME_ERRORS if done.num_errors else ALL_ANSWERED


def _refuse_all(command: JobCommand, run: _Run) -> None:
    """Answer an input in which every line is wrong. No model is loaded for that."""
    summary, begin = JobSummary(), time.monotonic()
    for line in _left(run, command.options.parsed_shard.holds):
        try:
            command.parse(line.raw)
        except LineError as error:
            custom_id = id_of(line.line_no, error.custom_id)
            record = error_record(error.form, custom_id, line.line_no, error.code, error.message)
            run.done.add(line.line_no, run.output.write(dump(record)), is_error=True)
            summary.add_error(error.code)
    run.output.sync(now=True)
    _check_unchanged(run)
    figures = summary.figures(Summary(), time.monotonic() - begin, 0)
    for text in describe(figures):
        command.say(text)
    _write_figures(command.options, figures)


def _check_room(command: JobCommand, found: Scan, scheduler: Scheduler) -> None:
    """For lines without max_tokens: where they end is a part of what the records depend on."""
    room = scheduler.max_seq_len
    if room < scheduler.config.max_model_len:
        command.say(
            f"warning: {found.num_unbounded} outputs without max_tokens are cut at {room} tokens, prompt "
            "included: what the cache holds"
        )
    if not command.options.streams:
        keep_room(command.options.output_path, command.state_of(found.sha256), room)


def _answer_and_report(command: JobCommand, run: _Run, model: Model) -> bool:
    """Run the loop, and say what was done, also where it fails; whether it came to its end."""
    summary, begin = JobSummary(), time.monotonic()
    try:
        complete = _answer(command, run, model, summary)
    finally:
        figures = summary.figures(model.engine.summary, time.monotonic() - begin, model.compilations())
        for line in describe(figures):
            command.say(line)
        if summary.finish_reasons.total() < MIN_FOR_EARLY_WARNING:
            _warn_of_length(summary, command.say)
        _write_figures(command.options, figures)
    return complete


def _write_figures(options: JobOptions, figures: dict[str, Any]) -> None:
    if options.summary_path is not None:
        with replacing(options.summary_path) as file:
            file.write(json.dumps(figures, indent=1, allow_nan=False).encode() + b"\n")


def _answer(command: JobCommand, run: _Run, model: Model, summary: JobSummary) -> bool:
    """Run the loop, with a progress bar; whether it came to its end."""
    found, done, stop = run.found, run.done, run.stop
    room = model.engine.scheduler.max_seq_len
    mean_bound = (found.max_tokens + found.num_unbounded * room) / max(1, found.num_requests)
    tokens_left = TokensLeft(mean_bound, found.num_requests - done.num_done)
    parts = JobParts(
        engine=model.engine,
        output=run.output,
        parse=command.parse,
        encode_chat=model.encode_chat,
        summary=summary,
        tokens_left=tokens_left,
        on_record=lambda line_no, offset, is_error: done.add(line_no, offset, is_error=is_error),
    )
    shard, warned = command.options.parsed_shard, False
    begin = last = time.monotonic()
    with progress_bar("generating", found.num_requests) as update:

        def on_step() -> None:
            nonlocal last, warned
            now = time.monotonic()
            if now - last > REPORT_EVERY_S:
                last = now
                update(done.num_done, tokens_left.note(now - begin))
            if not warned and summary.finish_reasons.total() >= MIN_FOR_EARLY_WARNING:
                warned = _warn_of_length(summary, command.say)

        stop.graceful = True
        try:
            ended = Job(parts).run(_left(run, shard.holds), stop.stopped, on_step)
            run.output.sync(now=True)
            _check_unchanged(run)
            update(done.num_done, tokens_left.note(time.monotonic() - begin))
        finally:
            stop.graceful = False
    return ended


def _left(run: _Run, in_shard: Callable[[int], bool]) -> Iterator[InputLine]:
    """The lines that have no record."""
    run.source.seek(0)
    for line in read_lines(run.source):
        if line.line_no > run.found.last_line_no:
            _check_unchanged(run)
        if in_shard(line.line_no) and line.line_no not in run.done:
            yield line


def _check_unchanged(run: _Run) -> None:
    """Raise _Stopped where the input was written to while it was read."""
    if _identity(run.source) != run.source_before:
        raise _Stopped("the input changed while the job ran, so records may be of other lines: start anew")


def _identity(file: BinaryIO) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _warn_of_length(summary: JobSummary, say: Say) -> bool:
    if summary.mostly_length:
        length, total = summary.finish_reasons["length"], summary.finish_reasons.total()
        say(f"warning: {length} of {total} outputs were cut off by max_tokens or the end of the context")
    return summary.mostly_length


def _advice(options: JobOptions) -> str:
    if options.streams:
        return "Only whole records were written"
    return f"{options.output_file} holds whole records: the same command goes on from there"


def _exit_at_once(code: int) -> None:
    show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides it
    os.write(2, show_cursor + b"jbatch: interrupted\n")
    os._exit(code)
