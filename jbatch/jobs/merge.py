"""`jbatch merge OUT... -o MERGED`: the outputs of all shards of a job become one, in the input's order."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import BinaryIO, NamedTuple

import numpy as np

from jbatch.errors import ConfigError
from jbatch.jobs.files import naming, replacing
from jbatch.jobs.input import Parse, Scan, id_of, open_input, read_lines, scan_input
from jbatch.jobs.lock import lock_file, locked
from jbatch.jobs.options import Shard, parse_shard
from jbatch.jobs.report import Say
from jbatch.jobs.request_line import LineError, parse_line
from jbatch.jobs.resume import BLOCK, read_results
from jbatch.jobs.state import JobState, check_own, differences, load_state, save_state
from jbatch.progress import progress_bar

WHOLE, WHOLE_NAME = Shard(0, 1), "1/1"
ALL_ANSWERED, SOME_ERRORS = 0, 1  # exit codes, as of the job


class _Part(NamedTuple):
    """The output of one shard."""

    path: str
    state: JobState
    shard: Shard

    def __str__(self) -> str:
        return f"shard {self.state.shard} ({self.path})"


class _Found(NamedTuple):
    """Where the result of each line is."""

    offsets: np.ndarray  # by line number, in the output of the line's shard; -1: there is none
    num_errors: int


def merge(outputs: Sequence[str], output_file: str, input_file: str | None, say: Say) -> int:
    """Join the outputs of `--shard 1/n` to `n/n` into one file, which then is the output of the whole job;
    the exit code: 0 where every line has an answer, 1 where some results are errors.

    Args:
      input_file: None: the one that the shards were run on, where it still is.

    Raises:
      ConfigError: naming shard and file where a shard is missing or comes twice, was run on another input,
        with another model or other options, or is not done; where a result is lost, doubled or of no line of
        its shard, with its id; and for an `output_file` that is there.
      OSError: where a file cannot be read or written. Then there is no `output_file`.
    """
    _check_new(output_file)
    path = os.path.realpath(output_file)
    with ExitStack() as stack:
        stack.enter_context(locked(path))
        parts = _parts(outputs)
        files = [_open_locked(part.path, stack) for part in parts]
        source = stack.enter_context(_open_input(parts[0], input_file))
        scan = _scan(source, parts[0])
        found = _find(parts, scan)
        _check_all_there(parts, scan, found, source)
        check_own(path)
        save_state(path, _state_of_all(parts))
        _write(path, files, found)
    errors = f", {found.num_errors} of them errors" if found.num_errors else ""
    say(f"merged {len(parts)} outputs: {scan.num_requests} results{errors}, in the order of {source.name}")
    return SOME_ERRORS if found.num_errors else ALL_ANSWERED


def _check_new(path: str) -> None:
    if path == "-" or os.path.isdir(path):
        raise ConfigError("output_file", path, "must be a file")
    if os.path.lexists(path):
        raise ConfigError("output_file", path, "is there already: name another, or remove it")


def _parts(paths: Sequence[str]) -> list[_Part]:
    """The outputs, in the order of their shards: each of them once, and all of one job."""
    states = [load_state(path) for path in paths]
    parts = [_Part(path, state, parse_shard(state.shard)) for path, state in zip(paths, states, strict=True)]
    parts.sort(key=lambda part: part.shard)
    first = parts[0]
    for part in parts[1:]:
        if part.shard.num_shards != first.shard.num_shards:
            raise ConfigError("outputs", list(paths), f"{first} and {part} are of different cuts")
    for before, part in itertools.pairwise(parts):
        if before.shard == part.shard:
            raise ConfigError("outputs", list(paths), f"shard {part.state.shard} is there twice")
    present = {part.shard.shard_idx for part in parts}
    num_shards = first.shard.num_shards
    missing = [f"{idx + 1}/{num_shards}" for idx in range(num_shards) if idx not in present]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ConfigError("outputs", list(paths), f"missing: shard {', '.join(missing[:5])}{more}")
    for part in parts[1:]:
        if changes := differences(first.state, part.state, between=f"in {first.path}"):
            raise ConfigError("output", part.path, f"{part} has another {'; another '.join(changes)}")
    return parts


def _open_locked(path: str, stack: ExitStack) -> BinaryIO:
    """An output to read, which nobody writes to meanwhile."""
    with naming(path):
        file = open(path, "rb")  # noqa: SIM115, closed by the stack
    stack.enter_context(file)
    lock_file(file.fileno(), path, "a job is writing to it: wait for its end")
    return file


def _open_input(part: _Part, input_file: str | None) -> BinaryIO:
    path = input_file or part.state.input_file
    if path is None:
        raise ConfigError("input_file", None, f"{part.path} does not say where its input is: name it (-i)")
    return open_input(path)


def _scan(source: BinaryIO, part: _Part) -> Scan:
    name, size = str(source.name), os.fstat(source.fileno()).st_size
    with naming(name), progress_bar("checking", size, "bytes") as update:
        scan = scan_input(source, _parse(), WHOLE, update)
    if scan.sha256 != part.state.input:
        reason = (
            f"is not what {part.path} answers: sha256 {scan.sha256[:12]}, and not {part.state.input[:12]}"
        )
        raise ConfigError("input_file", name, reason)
    return scan


def _parse() -> Parse:
    """For ids alone, which do not depend on defaults."""
    return functools.partial(parse_line, defaults={})


def _find(parts: Sequence[_Part], scan: Scan) -> _Found:
    """Look up all results. Raises ConfigError for one that is of no line of its shard, or a second one."""
    offsets, num_errors = np.full(scan.last_line_no + 1, -1, np.int64), 0
    for part in parts:
        results = read_results(part.path)
        while block := list(itertools.islice(results, BLOCK)):
            line_nos = scan.ids.line_nos(result.custom_id for result in block)
            for result, line_no in zip(block, line_nos, strict=True):
                if why := _why_not(part, line_no, offsets):
                    reason = f"shard {part.state.shard} has a result of custom_id {result.custom_id!r} {why}"
                    raise ConfigError("output", part.path, reason)
                offsets[line_no] = result.offset
                num_errors += result.is_error
    return _Found(offsets, num_errors)


def _why_not(part: _Part, line_no: int, offsets: np.ndarray) -> str | None:
    """What is wrong with a result of this line in an output; None where nothing is."""
    if line_no == 0:
        return "which is no line of the input"
    if not part.shard.holds(line_no):
        num_shards = part.shard.num_shards
        return f"which is line {line_no}, of shard {(line_no - 1) % num_shards + 1}/{num_shards}"
    return f"(line {line_no}) twice" if offsets[line_no] >= 0 else None


def _check_all_there(parts: Sequence[_Part], scan: Scan, found: _Found, source: BinaryIO) -> None:
    """Raise ConfigError where lines have no result, naming the first of each shard."""
    line_nos = scan.ids.all_line_nos()
    lost = np.sort(line_nos[found.offsets[line_nos] < 0])
    if not len(lost):
        return
    by_shard = [lost[(lost - 1) % len(parts) == part.shard.shard_idx] for part in parts]
    firsts = {int(lines[0]) for lines in by_shard if len(lines)}
    ids = dict(_ids_of(source, firsts))
    texts = [
        f"{part} has no result of {_lines(lines)}, custom_id {ids[int(lines[0])]!r}"
        for part, lines in zip(parts, by_shard, strict=True)
        if len(lines)
    ]
    unfinished = [part.path for part, lines in zip(parts, by_shard, strict=True) if len(lines)]
    raise ConfigError("outputs", unfinished, f"{'; '.join(texts)}. The same command goes on with each")


def _lines(line_nos: np.ndarray) -> str:
    first = int(line_nos[0])
    return f"line {first}" if len(line_nos) == 1 else f"{len(line_nos)} lines, the first of them {first}"


def _ids_of(source: BinaryIO, line_nos: set[int]) -> Iterator[tuple[int, str]]:
    source.seek(0)
    parse = _parse()
    for line_no, raw in read_lines(source):
        if line_no in line_nos:
            try:
                custom_id = parse(raw).custom_id
            except LineError as error:
                custom_id = error.custom_id
            yield line_no, id_of(line_no, custom_id)


def _state_of_all(parts: Sequence[_Part]) -> JobState:
    """The state of the whole job: with it, `jbatch generate` goes on with the merged output."""
    rooms = (part.state.room for part in parts if part.state.room is not None)
    numerics = (part.state.numerics for part in parts if part.state.numerics is not None)
    return dataclasses.replace(
        parts[0].state, shard=WHOLE_NAME, room=next(rooms, None), numerics=next(numerics, None)
    )


def _write(path: str, files: Sequence[BinaryIO], found: _Found) -> None:
    line_nos = np.flatnonzero(found.offsets >= 0)
    with replacing(path) as target:
        for begin in range(0, len(line_nos), BLOCK):
            for line_no in line_nos[begin : begin + BLOCK].tolist():
                source = files[(line_no - 1) % len(files)]
                source.seek(found.offsets[line_no])
                target.write(source.readline())
