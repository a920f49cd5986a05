"""An arm of a comparison, as pictures need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Arm(NamedTuple):
    """What the pictures need of one arm; columns are lists of equal lengths, by field."""

    name: str
    figures: Mapping[str, Any]
    steps: Mapping[str, list[Any]]
    requests: Mapping[str, list[Any]]

    @property
    def num_slots(self) -> int:
        """Slots to draw: the rows of device state that were used, and no fewer than decoding buckets have."""
        rows = (row[0] + 1 for rows in self.steps.get("rows", ()) for row in rows)
        steps = zip(self.steps.get("kind", ()), self.steps.get("slots", ()), strict=True)
        return max([*rows, *(slots for kind, slots in steps if kind == "decode")], default=0)


def columns(rows: Sequence[Sequence[Any]], fields: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each field. Raises ValueError where a row has other fields."""
    if any(len(row) != len(fields) for row in rows):
        raise ValueError(f"a row does not have the {len(fields)} fields {', '.join(fields)}")
    return {name: [row[index] for row in rows] for index, name in enumerate(fields)}


def read_arms(content: Mapping[str, Any]) -> tuple[list[Arm], list[tuple[str, str]]]:
    """The arms that ran, and (name, why not) of the others."""
    ran, not_run = [], []
    for name, figure in content["arms"].items():
        if "not_run" in figure:
            not_run.append((name, str(figure["not_run"])))
            continue
        steps = columns(figure.get("steps", ()), content["step_fields"])
        requests = columns(figure.get("requests", ()), content["request_fields"])
        ran.append(Arm(name, figure, steps, requests))
    return ran, not_run
