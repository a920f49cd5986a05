"""What each slot does in each step, as results tell it.

A row that is in no step is idle. Of those, as many are padding as a decode step's bucket has slots too many:
padding has no row of its own, so the topmost idle ones stand for it. Of a long run's later steps it is
recorded how many sequences were in them, but not which: they stand in the topmost slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.report.arm import Arm

MAX_SLOTS = 32  # more could not be told apart
PROMPT, HELD, PADDING, WAITING, SOMEONE = "prompt", "held", "padding", "waiting", "someone"
IS_HELD, IS_PROMPT = 1, 2  # states in a StepRow's rows


class Cell(NamedTuple):
    """What a slot does in a step."""

    request: int | None = None  # whose it is; None where it is nobody's, or no longer
    shade: str | None = None


IDLE = Cell()


def num_recorded(arm: Arm) -> int:
    """Steps of which it is recorded who was in them: results keep that of the first thousand."""
    recorded = [index for index, rows in enumerate(arm.steps["rows"]) if rows]
    return recorded[-1] + 1 if recorded else 0


def cells_of(arm: Arm) -> list[list[Cell]]:
    """What each slot does in each step [slots][steps]."""
    num_slots, num_steps = min(arm.num_slots, MAX_SLOTS), len(arm.steps["kind"])
    cells = [[IDLE] * num_steps for _ in range(num_slots)]
    fields = (arm.steps[name] for name in ("kind", "slots", "slots_used", "wasted", "rows"))
    recorded = num_recorded(arm)
    for step, (kind, slots, used, wasted, rows) in enumerate(zip(*fields, strict=True)):
        if step < recorded:
            present = {row: _cell(kind, request, state) for row, request, state in rows}
        else:
            held = wasted if kind == "decode" else 0
            present = dict(enumerate([Cell(None, SOMEONE)] * (used - held) + [Cell(None, HELD)] * held))
        padding = slots - used if kind == "decode" else 0
        for slot in range(num_slots):
            cells[slot][step] = present.get(slot, Cell(None, PADDING) if padding > 0 else IDLE)
            padding -= slot not in present
    for row in cells:
        _bridge(row, arm.steps["kind"])
    return cells


def _cell(kind: str, request: int, state: int) -> Cell:
    if state == IS_HELD:
        return Cell(None, HELD)
    return Cell(request, PROMPT if kind == "prefill" or state == IS_PROMPT else None)


def _bridge(cells: list[Cell], kinds: Sequence[str]) -> None:
    """A sequence that is left out of a step with others' prompts still holds its slot: it waits."""
    last = IDLE
    for step, cell in enumerate(cells):
        if cell is not IDLE:
            last = cell
        elif kinds[step] == "prefill" and last.request is not None:
            after = next((c for c in cells[step:] if c is not IDLE), IDLE)
            if after.request == last.request:
                cells[step] = Cell(last.request, WAITING)
