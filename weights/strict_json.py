"""JSON objects without duplicate keys or NaN, which Python's parser lets pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from weights.errors import WeightsError


def loads(data: bytes) -> dict[str, Any]:
    """Parse one object. Raises ValueError, also for invalid UTF-8 and for nesting without end."""
    try:
        raw = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    return raw


def read(path: Path, max_bytes: int = 2**26) -> dict[str, Any]:
    """Read one object from a file. Raises WeightsError naming the file."""
    try:
        if path.stat().st_size > max_bytes:
            raise ValueError(f"larger than {max_bytes} bytes")
        return loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path.name}: {str(error)[:300]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{key[:80]!r} appears twice")
        result[key] = value
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
