"""A trace that an engine wrote, read back (see jbatch.engine.trace)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.engine.trace import FORMAT, VERSION
from jbatch.errors import JBatchError
from jbatch.host.config import SchedulerConfig
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.seam.bucket import Bucket
from jbatch.seam.shape import StateShape

KINDS = ("add", "end", "limits", "plan", "result", "told")
# What comes of lines that do not say what a trace says.
ODD = (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError)


class TraceError(JBatchError, ValueError):
    """A trace that cannot be read, or not be repeated; it names the file, and the line."""


class Line(NamedTuple):
    """Something that happened."""

    number: int  # from 0, as the file has it
    kind: str  # of KINDS
    value: Any
    raw: str

    @property
    def line_no(self) -> int:
        """As an editor counts."""
        return self.number + 1


class Trace(NamedTuple):
    """A run's decisions."""

    path: str
    config: dict[str, Any]  # of its scheduler
    lines: tuple[Line, ...]
    closed: str  # why it ends

    def config_for(self, policy: str | None = None, admission: str | None = None) -> SchedulerConfig:
        """The scheduler's configuration, or the same under another policy, or another admission.

        Raises:
          TraceError: where the policy is a function of the user's, and no other is named; for configurations
            that this version does not know.
        """
        given = dict(self.config)
        name: Any = policy or given.get("policy")
        if name is None:
            raise TraceError(
                f"{self.path}: its policy is a function that is not in the file: name one of "
                f"{', '.join(POLICIES)}"
            )
        try:
            given["shape"] = StateShape(**given["shape"])
            given["buckets"] = tuple(Bucket(*bucket) for bucket in given["buckets"])
            given["policy"], given["admission"] = POLICIES[name], MODES[given["admission"]]
            if admission is not None:
                given["reserve"] = admission
            return SchedulerConfig(**given)
        except ODD as error:
            raise TraceError(f"{self.path}, line 1: no scheduler of this version: {error}") from None


@contextmanager
def followed(trace: Trace, line: Line | None = None) -> Iterator[None]:
    """Do what a trace, or a line of it, says. Raises TraceError where it was changed and makes no sense."""
    place = trace.path if line is None else f"{trace.path}, line {line.line_no}"
    try:
        yield
    except TraceError:
        raise
    except (JBatchError, *ODD) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TraceError(f"{place}: it cannot be followed: {reason}") from error


def read_trace(path: str | Path) -> Trace:
    """A whole trace.

    Raises:
      TraceError: naming the line, for one that is missing, torn or none of a trace.
      OSError: where the file cannot be opened.
    """
    values = _numbered(Path(path))
    header = next(values, None)
    if header is None or header[1].get("format") != FORMAT:
        raise TraceError(f'{path}: no trace: line 1 must be an object with "format": "{FORMAT}"')
    if header[1].get("version") != VERSION or not isinstance(header[1].get("config"), dict):
        version = header[1].get("version")
        raise TraceError(f"{path}, line 1: version {version!r}: this jbatch reads {VERSION}")
    lines: list[Line] = []
    for number, value, raw in values:
        if "closed" in value:
            return Trace(str(path), header[1]["config"], tuple(lines), str(value["closed"]))
        kind = next((kind for kind in KINDS if kind in value), None)
        if kind is None:
            raise TraceError(f"{path}, line {number + 1}: nothing that a trace has: {raw:.80}")
        lines.append(Line(number, kind, value, raw))
    raise TraceError(f"{path}: cut off after line {len(lines) + 1}: the run was ended, or its disk was full")


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, raw in enumerate(file):
                try:
                    value = json.loads(raw)
                except json.JSONDecodeError as error:
                    raise TraceError(f"{path}, line {number + 1}: torn: {error}") from None
                if not isinstance(value, dict) or not isinstance(value.get("n"), int):
                    raise TraceError(f"{path}, line {number + 1}: no line of a trace: {raw:.80}")
                if value["n"] != number:
                    raise TraceError(
                        f"{path}, line {number + 1}: it is number {value['n']}, and {number} must be here: "
                        "lines are missing, or stand twice"
                    )
                yield number, value, raw
    except UnicodeDecodeError:
        raise TraceError(f"{path}: no text") from None
