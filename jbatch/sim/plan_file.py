"""Step plans in a file: what a run computed, step by step, to be computed again by any executor.

JSON lines: a header that names the format, its version and the sizes of the device state; a line per plan;
and a last line that counts them, so that a file which was cut off is told from a whole one. A named tuple
with fields that must be given is an array, without what has its default at the end; every other record is an
object without what has its default.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.errors import JBatchError
from jbatch.host.plan import Bucket, Chunk, StepPlan, align, padding, row_columns, unpack

FORMAT, VERSION = "jbatch-plans", 1
MAX_SIZE = 2**20  # slots or tokens of a bucket, as EngineConfig has it


class PlanFileError(JBatchError, ValueError):
    """A plan file that cannot be read, or does not fit an executor; it names the file, and the line."""


class PlanShape(NamedTuple):
    """The device state that plans were made for: an executor of the same sizes can run them."""

    num_rows: int
    num_pages: int
    page_size: int
    pages_per_seq: int
    vocab_size: int


class Recording(NamedTuple):
    """A run's plans, in the order in which they were launched."""

    shape: PlanShape
    plans: tuple[StepPlan, ...]


class PlanWriter:
    """Writes plans as they come: `with PlanWriter(path, shape) as writer: writer.write(step.plan)`."""

    def __init__(self, path: str | Path, shape: PlanShape):
        self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115, closed by `close`
        self._count = 0
        self._line({"format": FORMAT, "version": VERSION, **shape._asdict()})

    def write(self, plan: StepPlan) -> None:
        """Add a plan, such as `EngineStep.plan`."""
        self._line(_encode(plan))
        self._count += 1

    def close(self) -> None:
        """End the file. Without this it reads as cut off."""
        if not self._file.closed:
            self._line({"num_plans": self._count})
            self._file.close()

    def __enter__(self) -> PlanWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        self._file.close()  # of a run that failed: no last line

    def _line(self, value: Any) -> None:
        self._file.write(json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")


def read_plans(path: str | Path) -> Recording:
    """A recorded run.

    Raises:
      PlanFileError: for a file of another format or version, one that was cut off, and a line that is no
        plan for the header's sizes, naming the line.
      OSError: where the file cannot be opened.
    """
    path = Path(path)
    lines = _lines(path)
    _, header = next(lines, (1, None))
    shape = _header(path, header)
    plans: list[StepPlan] = []
    for number, value in lines:
        if isinstance(value, dict) and "num_plans" in value:
            if value["num_plans"] != len(plans) or next(lines, None) is not None:
                raise PlanFileError(f"{path}, line {number}: it must be the last, after as many plans")
            return Recording(shape, tuple(plans))
        try:
            plan = _decode(StepPlan, value, "plan")
            _check(plan, shape)
        except ValueError as error:
            raise PlanFileError(f"{path}, line {number}: {error}") from None
        plans.append(plan)
    raise PlanFileError(f"{path}: cut off after {len(plans)} plans: the line with num_plans is missing")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise PlanFileError(f"{path}, line {number}: no JSON, or cut off: {error}") from None
    except UnicodeDecodeError:
        raise PlanFileError(f"{path}: no text") from None


def _header(path: Path, header: Any) -> PlanShape:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PlanFileError(f'{path}: no plan file: line 1 must be an object with "format": "{FORMAT}"')
    if header.get("version") != VERSION:
        raise PlanFileError(f"{path}: version {header.get('version')!r}: this jbatch reads {VERSION}")
    sizes = {name: header.get(name) for name in PlanShape._fields}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise PlanFileError(f"{path}, line 1: {name}={size!r}: must be an integer of at least 1")
    return PlanShape(**typing.cast(dict[str, int], sizes))


def _check(plan: StepPlan, shape: PlanShape) -> None:
    """Raise ValueError for a plan that `pack` could not pack, or that names what is not there."""
    _check_slots(plan.bucket, plan)
    for row in plan.rows:
        if not 0 <= row < shape.num_rows:
            raise ValueError(f"row {row}: must be from 0 to {shape.num_rows - 1}")
    _check_pages(plan, shape)
    for chunk in plan.chunks:
        _check_chunk(chunk, shape)
    num_tokens = sum(align(len(chunk.token_ids)) for chunk in plan.chunks)
    if num_tokens > plan.bucket.tokens:
        raise ValueError(f"chunks of {num_tokens} tokens in a bucket of {plan.bucket.tokens}")


def _check_slots(bucket: Bucket, plan: StepPlan) -> None:
    if not (0 < bucket.slots <= MAX_SIZE and 0 < bucket.tokens <= MAX_SIZE):
        raise ValueError(f"bucket={tuple(bucket)}: slots and tokens must be from 1 to {MAX_SIZE}")
    num_slots = len(plan.seq_ids)
    if num_slots > bucket.slots or len(plan.rows) != num_slots:
        raise ValueError(f"{num_slots} seq_ids and {len(plan.rows)} rows in a bucket of {bucket.slots} slots")
    prefill = bucket.kind == "prefill"
    if len(plan.chunks) != num_slots * prefill:
        raise ValueError(f"{len(plan.chunks)} chunks in a {bucket.kind} step of {num_slots} sequences")
    if plan.frozen and (prefill or len(plan.frozen) != num_slots):
        raise ValueError(f"{len(plan.frozen)} frozen in a {bucket.kind} step of {num_slots} sequences")


def _check_chunk(chunk: Chunk, shape: PlanShape) -> None:
    for token_id in chunk.token_ids:
        if not 0 <= token_id < shape.vocab_size:
            raise ValueError(f"token id {token_id}: must be from 0 to {shape.vocab_size - 1}")
    most = shape.vocab_size - 1
    if len(chunk.targets) > len(chunk.token_ids) or not all(-1 <= t <= most for t in chunk.targets):
        raise ValueError(f"targets={chunk.targets}: must be at most one per token, from -1 to {most}")
    end = chunk.start + len(chunk.token_ids)
    if not 0 <= chunk.start < end <= shape.pages_per_seq * shape.page_size:
        raise ValueError(f"a chunk from {chunk.start} to {end}: no part of a block table")
    if chunk.setup is not None:
        try:
            row_columns(chunk.setup)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"setup={chunk.setup}: {error}") from None


def _check_pages(plan: StepPlan, shape: PlanShape) -> None:
    for update in plan.table_updates:
        ends = (shape.num_rows, shape.pages_per_seq, shape.num_pages)
        lows = (0, 0, 1)  # page 0 is nobody's
        if not all(low <= value < end for low, value, end in zip(lows, update, ends, strict=True)):
            raise ValueError(f"{update}: must be from {lows} to below {ends}")
    room = padding(plan.bucket, shape.num_rows, shape.page_size)
    most = len(unpack(room, plan.bucket, shape.page_size).table_updates)
    if len(plan.table_updates) > most:
        raise ValueError(f"{len(plan.table_updates)} table_updates: {most} fit into the bucket")


# Plain data: from and to what JSON has, led by the classes' own annotations.


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):  # an enum's member too
        return int(value)
    cls: Any = type(value)
    fields = _fields(cls)
    if fields is None:
        return [_encode(item) for item in value]
    if _is_array(cls, fields):
        items = [getattr(value, name) for name in fields]
        while items[-1] == list(fields.values())[len(items) - 1].default:
            items.pop()
        return [_encode(item) for item in items]
    given = {name: getattr(value, name) for name in fields}
    return {name: _encode(item) for name, item in given.items() if item != fields[name].default}


def _decode(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` says. Raises ValueError that names the place."""
    fields = _fields(hint)
    if fields is not None:
        return _decode_record(hint, fields, value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:  # of RowSetup: a number, or integers
        if isinstance(value, list):
            return tuple(_decode(int, item, f"{where}[{i}]") for i, item in enumerate(value))
        hint = int if type(value) is int else float
    if origin in (typing.Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None else _decode(inner, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is typing.Literal and value in args:
        return value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)  # its ValueError names class and value
    if type(value) is hint:
        return value
    raise ValueError(f"{where}={value!r}: must be {getattr(hint, '__name__', hint)}")


def _decode_record(cls: Any, fields: dict[str, _Field], value: Any, where: str) -> Any:
    if _is_array(cls, fields):
        least = sum(field.default is _REQUIRED for field in fields.values())
        if not isinstance(value, list) or not least <= len(value) <= len(fields):
            raise ValueError(f"{where}={value!r}: must be an array of {', '.join(fields)}")
        value = dict(zip(fields, value, strict=False))
    if not isinstance(value, dict):
        raise ValueError(f"{where}={value!r}: must be an object")
    for name in value.keys() - fields.keys():
        raise ValueError(f"{where} has no {name!r}; known: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in value and field.default is _REQUIRED:
            raise ValueError(f"{where} lacks {name!r}")
    return cls(**{name: _decode(fields[name].hint, item, f"{where}.{name}") for name, item in value.items()})


_REQUIRED: Any = object()


class _Field(NamedTuple):
    hint: Any
    default: Any


@functools.cache
def _fields(cls: Any) -> dict[str, _Field] | None:
    """The fields of a dataclass or a named tuple; None for anything else."""
    if dataclasses.is_dataclass(cls):
        defaults = {
            f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING
        }
        names = [f.name for f in dataclasses.fields(cls)]
    elif isinstance(cls, type) and hasattr(cls, "_field_defaults"):
        defaults, names = cls._field_defaults, list(cls.__annotations__)
    else:
        return None
    hints = typing.get_type_hints(cls)
    return {name: _Field(hints[name], defaults.get(name, _REQUIRED)) for name in names}


def _is_array(cls: Any, fields: dict[str, _Field]) -> bool:
    """A named tuple with fields that must be given; those behind them may be left out."""
    return not dataclasses.is_dataclass(cls) and any(f.default is _REQUIRED for f in fields.values())
