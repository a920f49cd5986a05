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
import struct
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.errors import JBatchError
from jbatch.host.plan import Chunk, Draw, StepPlan
from jbatch.seam.bucket import align, room_of
from jbatch.seam.rows import row_columns
from jbatch.seam.shape import StateShape

FORMAT, VERSION = "jbatch-plans", 3
VOCAB_SIZE = "vocab_size"
MAX_SIZE = 2**20  # slots or tokens of a bucket, as EngineConfig has it
MAX_STEPS = 64  # of a bucket, as EngineConfig has it


class PlanFileError(JBatchError, ValueError):
    """A plan file that cannot be read, or does not fit an executor; it names the file, and the line."""


class Recording(NamedTuple):
    """A run's plans, in the order in which they were launched."""

    shape: StateShape  # that the plans were made for: an executor of the same sizes can run them
    vocab_size: int
    plans: tuple[StepPlan, ...]


class PlanWriter:
    """Writes plans as they come: `with PlanWriter(path, shape, vocab_size) as writer: writer.write(plan)`."""

    def __init__(self, path: str | Path, shape: StateShape, vocab_size: int):
        self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115, closed by `close`
        self._count = 0
        self._line({"format": FORMAT, "version": VERSION, **shape._asdict(), VOCAB_SIZE: vocab_size})

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
    shape, vocab_size = _header(path, header)
    plans: list[StepPlan] = []
    for number, value in lines:
        if isinstance(value, dict) and "num_plans" in value:
            if value["num_plans"] != len(plans) or next(lines, None) is not None:
                raise PlanFileError(f"{path}, line {number}: it must be the last, after as many plans")
            return Recording(shape, vocab_size, tuple(plans))
        try:
            plan = _decode(StepPlan, value, "plan")
            _check(plan, shape, vocab_size)
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


def _header(path: Path, header: Any) -> tuple[StateShape, int]:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PlanFileError(f'{path}: no plan file: line 1 must be an object with "format": "{FORMAT}"')
    if header.get("version") != VERSION:
        raise PlanFileError(f"{path}: version {header.get('version')!r}: this jbatch reads {VERSION}")
    sizes: dict[str, Any] = {name: header.get(name) for name in (*StateShape._fields, VOCAB_SIZE)}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise PlanFileError(f"{path}, line 1: {name}={size!r}: must be an integer of at least 1")
    vocab_size = sizes.pop(VOCAB_SIZE)
    return StateShape(**sizes), vocab_size


def _check(plan: StepPlan, shape: StateShape, vocab_size: int) -> None:
    """Raise ValueError for a plan that `pack` could not pack, or that names what is not there."""
    _check_sizes(plan, shape)
    rows = [*plan.rows, *(chunk.row for chunk in plan.chunks)]
    for row in (*rows, *(draw.row for chunk in plan.chunks for draw in chunk.draws)):
        if not 0 <= row < shape.num_rows:
            raise ValueError(f"row {row}: must be from 0 to {shape.num_rows - 1}")
    _check_pages(plan, shape)
    for chunk in plan.chunks:
        _check_chunk(chunk, shape, vocab_size)


def _check_sizes(plan: StepPlan, shape: StateShape) -> None:
    bucket, num_slots = plan.bucket, len(plan.seq_ids)
    if not (min(bucket.slots, bucket.tokens) >= 0 and 0 < max(bucket.slots, bucket.tokens) <= MAX_SIZE):
        raise ValueError(f"bucket={tuple(bucket)}: must have slots or tokens, of 0 to {MAX_SIZE}")
    if not 1 <= bucket.steps <= MAX_STEPS or (bucket.tokens and bucket.steps > 1):
        raise ValueError(f"bucket={tuple(bucket)}: steps must be from 1 to {MAX_STEPS}, and 1 with tokens")
    if len(plan.rows) != num_slots or (plan.frozen and len(plan.frozen) != num_slots):
        raise ValueError(f"{len(plan.rows)} rows and {len(plan.frozen)} frozen for {num_slots} seq_ids")
    room = room_of(bucket, shape)
    sizes = {
        "seq_ids": (num_slots, bucket.slots),
        "chunks": (len(plan.chunks), room.chunks),
        "tokens of chunks": (sum(align(len(chunk.token_ids)) for chunk in plan.chunks), bucket.tokens),
        "draws of chunks": (sum(len(chunk.draws) for chunk in plan.chunks), room.chunk_draws),
        "table_updates": (len(plan.table_updates), room.table_updates),
    }
    for what, (number, most) in sizes.items():
        if number > most:
            raise ValueError(f"{number} {what}: at most {most} fit into bucket={tuple(bucket)}")


def _check_chunk(chunk: Chunk, shape: StateShape, vocab_size: int) -> None:
    for token_id in chunk.token_ids:
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"token id {token_id}: must be from 0 to {vocab_size - 1}")
    most = vocab_size - 1
    if len(chunk.targets) > len(chunk.token_ids) or not all(-1 <= t <= most for t in chunk.targets):
        raise ValueError(f"targets={chunk.targets}: must be at most one per token, from -1 to {most}")
    if not 0 <= chunk.start < chunk.end <= shape.pages_per_seq * shape.page_size:
        raise ValueError(f"a chunk from {chunk.start} to {chunk.end}: no part of a block table")
    for draw in chunk.draws:
        _check_draw(draw, len(chunk.token_ids))


def _check_draw(draw: Draw, num_tokens: int) -> None:
    if not 0 <= draw.offset < num_tokens:
        raise ValueError(f"a draw at offset {draw.offset}: must be from 0 to {num_tokens - 1}")
    if draw.setup is None:
        return
    try:
        row_columns(draw.setup)
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise ValueError(f"setup={draw.setup}: {error}") from None


def _check_pages(plan: StepPlan, shape: StateShape) -> None:
    ends = (shape.num_rows, shape.pages_per_seq, shape.num_pages)
    lows = (0, 0, 1)  # page 0 is nobody's
    for update in plan.table_updates:
        if not all(low <= value < end for low, value, end in zip(lows, update, ends, strict=True)):
            raise ValueError(f"{update}: must be from {lows} to below {ends}")
    for table in plan.tables:
        if not 0 <= table.row < shape.num_rows:
            raise ValueError(f"{table}: row must be from 0 to {shape.num_rows - 1}")
        if len(table.page_ids) > shape.pages_per_seq:
            raise ValueError(f"{table}: at most {shape.pages_per_seq} pages")
        if not all(0 < page < shape.num_pages for page in table.page_ids):
            raise ValueError(f"{table}: pages must be from 1 to {shape.num_pages - 1}")
    if len({table.row for table in plan.tables}) < len(plan.tables):
        raise ValueError(f"{plan.tables}: a row has two of them")
    for copy in plan.page_copies:
        if not all(0 < page < shape.num_pages for page in copy):
            raise ValueError(f"{copy}: must be from 1 to {shape.num_pages - 1}")


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
    if hint is float and type(value) is int:  # 1.0 is a number in JSON, and 1 is the same one
        return float(value)
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
