"""What the device can do at most, measured once: all other parts compare with it."""

from __future__ import annotations

from bench.gpu_suite.task import Task
from bench.measure import ceilings

SIZES = ceilings.Sizes(num_arrays=2, array_bytes=10**9)


def run(task: Task) -> None:
    """One row: the rates of reading, of copying and of matrix products, and each program's."""
    sizes, rounds = (ceilings.SMOKE, 1) if task.tiny else (SIZES, ceilings.ROUNDS)
    measured = ceilings.measure(sizes, rounds)
    task.emit({"case": "ceilings", "status": "ok", **measured._asdict()})
