"""JSON objects read strictly: a file without duplicate keys or NaN, and fields of one type within bounds.

Whatever is wrong is a ConfigError that names the field and shows its value in one short line.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from jbatch.errors import ConfigError

MAX_FILE_BYTES = 16 * 2**20
LFS_POINTER = b"version https://git-lfs"  # how one begins
REQUIRED = object()  # as a default: the field must be there


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError naming the file, whatever fails."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(path.name, str(path), f"cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(path.name, str(path), f"larger than {MAX_FILE_BYTES} bytes")
    if data.startswith(LFS_POINTER):
        reason = "a pointer of Git LFS in place of the file: run `git lfs pull` in its repository"
        raise ConfigError(path.name, str(path), reason)
    try:
        raw = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, bad UTF-8, a 5,000-digit integer
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise ConfigError(path.name, str(path), f"not valid JSON: {reason}") from None
    if not isinstance(raw, dict):
        raise ConfigError(path.name, str(path), f"must be a JSON object, not a {type(raw).__name__}")
    return raw


def read_optional(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no such file. Raises as `read_object` does."""
    return read_object(path) if path.exists() else {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key[:40]!r} appears twice")
        result[key] = value
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


# ---- fields ----


def int_field(raw: Mapping[str, Any], name: str, *, low: int = 1, high: int, default: Any = REQUIRED) -> int:
    """A field that is an integer from `low` to `high`."""
    value = raw.get(name, default)
    if value is REQUIRED:
        refuse(name, None, "missing")
    if type(value) is not int or not low <= value <= high:  # type(): True and 2.0 are no integers
        refuse(name, value, f"must be an integer from {low} to {high}")
    return value


def float_field(
    raw: Mapping[str, Any], name: str, *, low: float, high: float, default: Any = REQUIRED
) -> float:
    """A field that is a number from `low` to `high`."""
    value = raw.get(name, default)
    if value is REQUIRED:
        refuse(name, None, "missing")
    if type(value) not in (int, float) or not low <= value <= high:  # NaN is in no range
        refuse(name, value, f"must be a number from {low:g} to {high:g}")
    return float(value)


def bool_field(raw: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """A field that is true or false."""
    value = raw.get(name, default)
    if not isinstance(value, bool):
        refuse(name, value, "must be true or false")
    return value


def agreed(name: str, first: Any, second: Any) -> Any:
    """The one value of a setting that may be spelled in two places; None where neither has it."""
    both = first is not None and second is not None
    if both and (isinstance(first, dict | list) or not same(first, second)):
        refuse(name, first, f"given twice, the other time as {_brief(second)!r}")
    return second if first is None else first


def same(value: Any, other: Any) -> bool:
    """Whether two values are equal in JSON, where true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


# ---- errors ----


def refuse(name: str, value: Any, reason: str) -> NoReturn:
    """Raise ConfigError for a field."""
    raise ConfigError(name, _brief(value), reason)


def shown_key(key: str) -> str:
    """A key in one short line, whatever the file calls it."""
    return (key if key.isprintable() else repr(key)[1:-1])[:40]


def _brief(value: Any) -> Any:
    """A value for a message, with a short repr: the file may hold megabytes, or lists a thousand deep."""
    if isinstance(value, str):
        return value if len(value) <= 80 else value[:80] + "..."
    is_short = value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64)
    return value if is_short else reprlib.repr(value)
