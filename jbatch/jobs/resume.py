"""What an output holds already: which lines are answered, which results are errors, and their order."""

from __future__ import annotations

import array
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jbatch.errors import ConfigError
from jbatch.jobs.files import Check, naming, replacing, unchecked
from jbatch.jobs.input import Ids
from jbatch.jobs.results import OK

BLOCK = 4096  # results that are looked up, or copied, at once


class WrittenResult(NamedTuple):
    """One result in an output, as far as a later run must know it."""

    offset: int  # of its first byte
    custom_id: str
    is_error: bool


class Done:
    """Where each line's result is, 8 bytes per line."""

    def __init__(self, last_line_no: int):
        self.offsets = np.full(last_line_no + 1, -1, np.int64)  # by line number
        self.foreign = array.array("q")  # offsets of results of no line
        self.num_done = self.num_errors = 0

    def __contains__(self, line_no: int) -> bool:
        return self.offsets[line_no] >= 0

    def add(self, line_no: int, offset: int, *, is_error: bool) -> None:
        self.offsets[line_no] = offset
        self.num_done += 1
        self.num_errors += is_error


def read_results(path: str) -> Iterator[WrittenResult]:
    """All whole results of an output: a torn end is none. Raises ConfigError for a line that is no result."""
    return (result for result, _ in read_raw(path))


def read_raw(path: str) -> Iterator[tuple[WrittenResult, bytes]]:
    offset = 0
    with naming(path), open(path, "rb") as file:
        for line_no, raw in enumerate(file, start=1):
            if raw.endswith(b"\n"):
                yield WrittenResult(offset, *_id_and_error(raw, path, line_no)), raw
            offset += len(raw)


def _id_and_error(raw: bytes, path: str, line_no: int) -> tuple[str, bool]:
    try:
        result: Any = json.loads(raw)
        custom_id, is_error = result["custom_id"], _is_error(result)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        custom_id = None
    if not isinstance(custom_id, str):
        raise ConfigError("output", path, f"line {line_no} is no result with a custom_id: no output of a job")
    return custom_id, is_error


def _is_error(result: dict[str, Any]) -> bool:
    """Whether a line has no answer: an error of its own, or a response that is one."""
    response = result.get("response")
    refused = isinstance(response, dict) and response.get("status_code") != OK
    return refused or result.get("error") is not None


def find_done(path: str, ids: Ids, last_line_no: int) -> Done:
    """Which lines have their results in the output `path`.

    Raises:
      ConfigError: for a line that is no result, or a second result of one id.
    """
    done = Done(last_line_no)
    results = read_results(path)
    while block := list(itertools.islice(results, BLOCK)):
        line_nos = ids.line_nos(result.custom_id for result in block)
        for result, line_no in zip(block, line_nos, strict=True):
            if line_no == 0:
                done.foreign.append(result.offset)
            elif line_no in done:
                raise ConfigError("output", path, f"holds two results of custom_id {result.custom_id!r}")
            else:
                done.add(line_no, result.offset, is_error=result.is_error)
    return done


def drop_errors(path: str, check: Check = unchecked) -> int:
    """Take the error results out of an output, so that their lines run again; how many there were. Until the
    new file is whole, the old one stays.

    Args:
      check: raises where somebody else has written to the output.
    """
    num_errors = sum(result.is_error for result in read_results(path))
    if num_errors:
        with replacing(path, check) as target:
            target.writelines(raw for result, raw in read_raw(path) if not result.is_error)
    return num_errors


def sort_by_line(path: str, done: Done, check: Check = unchecked) -> None:
    """Put the results into the order of their lines, those of no line last. Until the new file is whole, the
    old one stays. `check` as in `drop_errors`."""
    order = done.offsets[done.offsets >= 0]
    if np.all(order[1:] > order[:-1]) and not done.foreign:
        return
    with open(path, "rb") as source, replacing(path, check) as target:
        for begin in range(0, len(order), BLOCK):  # in blocks: Python's integers take 36 bytes each
            _copy(source, target, order[begin : begin + BLOCK].tolist())
        _copy(source, target, done.foreign)


def _copy(source: BinaryIO, target: BinaryIO, offsets: Iterable[int]) -> None:
    for offset in offsets:
        source.seek(offset)
        target.write(source.readline())
