"""What the suite measures, in which order, and what fits a budget: data, and arithmetic on it.

A program is charged 15 seconds: about what a step of 32 layers takes to trace, compile and tune on a machine
with 16 cores that has compiled nothing before. On a warm start it is far less, and more parts fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PROGRAM_S = 15.0
START_S = 8.0  # of a process: imports, opening CUDA, taking its memory
END_S = 20.0  # of the budget: the archive and the report
SLACK_S = 30.0  # beyond what a part is charged, where there is time: then it is stopped
STEPS_AT_ONCE = 4  # compiled together: their products are tuned on the device, with many threads each
KERNELS_AT_ONCE = 12  # nothing to tune: a thread each


class Wave(NamedTuple):
    """Programs that are compiled together, and what is measured when all are there."""

    programs: int
    measure_s: float
    rows: int
    at_once: int = STEPS_AT_ONCE

    def compile_s(self, program_s: float) -> float:
        return -(-self.programs // self.at_once) * program_s


class Part(NamedTuple):
    """A process of its own: `run` of a module of bench.gpu_suite.

    What is `essential` has its time kept for it; the other parts take what is left.
    """

    name: str
    module: str
    waves: tuple[Wave, ...]
    setup_s: float = 0.0  # weights and caches
    essential: bool = False
    torch: bool = False  # PyTorch shares the device: JAX takes memory as it needs it

    def compile_s(self, program_s: float = PROGRAM_S) -> float:
        return sum(wave.compile_s(program_s) for wave in self.waves)

    @property
    def measure_s(self) -> float:
        return sum(wave.measure_s for wave in self.waves)

    def seconds(self, program_s: float = PROGRAM_S) -> float:
        """All that the part is charged."""
        return START_S + self.setup_s + self.compile_s(program_s) + self.measure_s


PARTS = (
    # The first process reads everything from a cold disk.
    Part("correct-mosaic", "correct", (Wave(12, 8, 12, KERNELS_AT_ONCE),), setup_s=10, essential=True),
    Part("correct-triton", "correct", (Wave(12, 8, 12, KERNELS_AT_ONCE),), essential=True),
    Part("ceilings", "ceilings", (Wave(5, 8, 1, KERNELS_AT_ONCE),), essential=True),
    Part(
        "decode-kernel",
        "decode_kernel",  # a pool for each kind of heads: two kernels and plain JAX for each problem
        (Wave(9, 8, 6, KERNELS_AT_ONCE), Wave(3, 3, 2, KERNELS_AT_ONCE), Wave(3, 3, 2, KERNELS_AT_ONCE)),
        setup_s=5,
        essential=True,
    ),
    Part("flag-sweep", "steps", (Wave(4, 5, 4), Wave(4, 5, 4)), setup_s=4, essential=True),
    Part("steps-8b", "steps", (Wave(4, 8, 4),), setup_s=10, essential=True),
    # PyTorch compiles three functions one after the other.
    Part("torch-step", "torch_step", (Wave(1, 0, 0), Wave(3, 8, 2, 1)), 17, essential=True, torch=True),
    Part("filtered", "steps", (Wave(2, 4, 2),), setup_s=6),
    Part("prefill", "steps", (Wave(2, 5, 2),), setup_s=6),
    Part("idle-share", "idle_share", (Wave(3, 5, 1),), setup_s=8),
    Part("ladder-7b", "ladder", (Wave(3, 0, 0), Wave(1, 70, 3)), setup_s=8, essential=True),
    Part("steps-others", "steps", (Wave(1, 3, 1), Wave(1, 3, 1)), setup_s=12),
    Part("row-bits", "row_bits", (Wave(4, 4, 2, 1),), setup_s=4),
)
TORCH_PARTS = (
    Part("torch-paged", "compare", (Wave(4, 0, 0), Wave(6, 60, 5, 1)), 20, essential=True, torch=True),
    Part("torch-hf", "compare", (Wave(4, 60, 3),), 20, essential=True, torch=True),
)
GROUPS = {"torch": TORCH_PARTS}
BY_NAME = {part.name: part for part in (*PARTS, *TORCH_PARTS)}


def choose(names: Sequence[str]) -> tuple[Part, ...]:
    """The parts of these names and groups, in order; without names, those of the first call."""
    if not names:
        return PARTS
    wanted = {part.name for name in names for part in GROUPS.get(name, (BY_NAME.get(name),)) if part}
    return tuple(part for name, part in BY_NAME.items() if name in wanted)


def allowance(part: Part, later: Sequence[Part], left_s: float) -> float:
    """Seconds that a part may take of those left; 0: it does not begin.

    An essential part begins whatever comes later, the others where they leave enough for it.
    """
    needed = part.seconds()
    spare = left_s - sum(other.seconds() for other in later if other.essential)
    if not part.essential and spare < needed:
        return 0.0
    limit = min(left_s, max(spare, needed), needed + SLACK_S)
    return limit if limit > START_S + part.setup_s else 0.0


class Entry(NamedTuple):
    """A part in a timetable. `begin` is None where there is no time for it."""

    part: str
    begin: float | None
    compile_s: float
    measure_s: float
    rows: int


def pack(parts: Sequence[Part], budget_s: float, program_s: float = PROGRAM_S) -> list[Entry]:
    """The timetable of a call in which every program takes `program_s`."""
    now, entries = 0.0, []
    for index, part in enumerate(parts):
        limit = allowance(part, parts[index + 1 :], budget_s - END_S - now)
        if not limit:
            entries.append(Entry(part.name, None, 0.0, 0.0, 0))
            continue
        entries.append(_run(part, now, limit, program_s))
        now += min(limit, part.seconds(program_s))
    return entries


def _run(part: Part, begin: float, limit_s: float, program_s: float) -> Entry:
    """What a part gets done before it is stopped."""
    left = limit_s - START_S - part.setup_s
    compile_s, measure_s, rows = 0.0, 0.0, 0
    for wave in part.waves:
        compiling = min(left, wave.compile_s(program_s))
        left -= compiling
        compile_s += compiling
        measuring = min(left, wave.measure_s)
        left -= measuring
        measure_s += measuring
        if measuring < wave.measure_s or compiling < wave.compile_s(program_s):
            break
        rows += wave.rows
    return Entry(part.name, begin, compile_s, measure_s, rows)


def table(entries: Sequence[Entry]) -> str:
    """A timetable, a line for each part."""
    lines = [f"{'part':16} {'begin':>7} {'compile s':>10} {'measure s':>10} {'rows':>5}"]
    for part, begin, compile_s, measure_s, rows in entries:
        if begin is None:
            lines.append(f"{part:16} {'no time left':>18}")
        else:
            lines.append(f"{part:16} {begin:7.0f} {compile_s:10.0f} {measure_s:10.0f} {rows:5}")
    return "\n".join(lines)
