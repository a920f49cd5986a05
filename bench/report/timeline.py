"""The slot timeline of engines that were stepped by hand, as in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench.measure.account import rows_of
from bench.report import slot_timeline
from bench.report.arm import Arm
from bench.report.svg import Picture
from jbatch.engine.records import EngineStep
from jbatch.host.metrics import summarise


def timeline(arms: Mapping[str, Iterable[EngineStep]]) -> Picture:
    """Who computed where, for each engine by its name, all on one axis. A notebook shows the picture, and
    `data` is its SVG file.

        steps = []
        while engine.has_unfinished:
            steps.append(engine.step())
        timeline({"mine": steps})

    Args:
      arms: all that the engine's `step` gave, from its first call on.
    """
    return slot_timeline.draw([_arm(name, steps) for name, steps in arms.items()], "slots.svg")


def _arm(name: str, steps: Iterable[EngineStep]) -> Arm:
    steps = list(steps)
    rows = {step.plan.step_idx: rows_of(step.plan) for step in steps if step.plan is not None}
    records = [step.record for step in steps if step.record is not None]
    columns: dict[str, list[Any]] = {
        "kind": [record.kind for record in records],
        "slots": [record.slots for record in records],
        "slots_used": [record.slots_used for record in records],
        "wasted": [record.wasted for record in records],
        "rows": [rows[record.step_idx] for record in records],
    }
    return Arm(name, {"slot_use": summarise(records).slot_use}, columns, {})
