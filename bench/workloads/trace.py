"""Traces of a production service's requests: Azure's CSV files of arrival times and lengths.

Columns TIMESTAMP, ContextTokens, GeneratedTokens (Patel et al., "Splitwise", ISCA 2024); there are no texts.
"""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jbatch.errors import JBatchError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_TOKENS = 2**24


class TraceError(JBatchError, ValueError):
    """A trace that cannot be read: names the file, the line, the column and the value."""


class Trace(NamedTuple):
    """Requests in order of arrival; the first one's time is 0."""

    arrivals: np.ndarray  # seconds
    prompt_lens: np.ndarray  # tokens
    output_lens: np.ndarray


def read_trace(path: str | Path, num_prompts: int) -> Trace:
    """The first `num_prompts` requests of a file.

    Raises:
      TraceError: for a file that is absent, lacks a column or has fewer requests, and for a line that does
        not say a time and two lengths of at least 0.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = _rows(Path(path), csv.DictReader(file, strict=True), num_prompts)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None
    if len(rows) < num_prompts:
        raise TraceError(f"{path}: has {len(rows)} requests, --num-prompts asks for {num_prompts}")
    table = np.array(rows)
    return Trace(table[:, 0] - table[0, 0], table[:, 1].astype(int), table[:, 2].astype(int))


def _rows(path: Path, reader: csv.DictReader[str], num_rows: int) -> list[tuple[float, int, int]]:
    """The first `num_rows` requests: time and lengths. Raises TraceError, naming the line."""
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise TraceError(f"{path}:1: no column {', '.join(missing)}; a trace has {', '.join(COLUMNS)}")
    rows: list[tuple[float, int, int]] = []
    for row in reader:
        where = f"{path}:{reader.line_num}"
        at, *lens = (row[name] for name in COLUMNS)
        prompt_len, output_len = (_length(where, name, v) for name, v in zip(COLUMNS[1:], lens, strict=True))
        rows.append((_seconds(where, at), prompt_len, output_len))
        if len(rows) > 1 and rows[-1][0] < rows[-2][0]:
            raise TraceError(f"{where}: TIMESTAMP={at!r}: is before the line above: sort the file by time")
        if len(rows) == num_rows:
            break
    return rows


def _seconds(where: str, value: str | None) -> float:
    """A time in seconds, from a date and time or a number of seconds."""
    try:
        moment = datetime.datetime.fromisoformat((value or "").strip())
        return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()
    except ValueError:
        pass
    try:
        seconds = float(value or "")
    except ValueError:
        seconds = float("nan")
    if not abs(seconds) < 1e15:
        raise TraceError(f"{where}: TIMESTAMP={value!r}: must be a date and time, or a number of seconds")
    return seconds


def _length(where: str, column: str, value: str | None) -> int:
    """A number of tokens. Raises TraceError for what is none."""
    try:
        length = int(value or "")
    except ValueError:
        raise TraceError(f"{where}: {column}={value!r}: must be an integer") from None
    if not 0 <= length <= MAX_TOKENS:
        raise TraceError(f"{where}: {column}={value!r}: must be from 0 to {MAX_TOKENS}")
    return length
