"""Sizes of memory as text, such as "80GiB", and back."""

from __future__ import annotations

import math
import re

from jbatch.errors import ConfigError

LEAST_WITHOUT_UNIT = 2**20  # bytes; a smaller number was meant in GiB
TOO_MANY = 2**62  # bytes
UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}


def parse_bytes(field: str, text: str) -> int:
    """The bytes of a size such as "80GiB", "141 GB" or "1.5e9". A small number alone was meant with a unit.

    Raises:
      ConfigError: for what is no size, naming the field that it was given for.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    units = {name.lower(): factor for name, factor in UNITS.items()}
    units |= {name[0]: factor for name, factor in units.items() if name.endswith("ib")}  # 80G
    try:
        assert match is not None
        size = float(match[1]) * units[match[2].lower()]
        if not 1 <= size < TOO_MANY:
            raise ValueError
    except (AssertionError, KeyError, ValueError):
        raise ConfigError(field, text, "must be a size, such as 80GiB, 141GB or 24e9") from None
    if not match[2] and size < LEAST_WITHOUT_UNIT:
        raise ConfigError(field, text, f"is in bytes: a unit is missing, as in {match[1]}GiB")
    return int(size)


def describe_bytes(size: int | float) -> str:
    """A size in the largest binary unit that leaves a number above 1, rounded up in the second decimal."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= UNITS[unit]:
            return f"{math.ceil(100 * size / UNITS[unit]) / 100:.2f} {unit}"
    return f"{int(size)} B"
