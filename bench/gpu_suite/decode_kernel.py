"""Decode attention alone beside what the device can read: each result is checked before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.gpu_suite.task import NotHere, Row, Task
from bench.kernels import arms
from bench.kernels.problems import GQA, GQA_64, MHA, TINY, decode_case
from bench.kernels.rows import Run, measure_attention
from bench.measure.ceilings import Ceilings
from bench.measure.journal import UNDER_WAY, Journal
from pallas_kernels.names import COMPILERS

ROUNDS = 7
# Those of one kind of heads one after the other: they share a pool.
CASES = [
    decode_case(GQA, 64, 64, 1024),
    decode_case(GQA, 64, 64, 8192),
    decode_case(GQA, 64, 1, 32768),
    decode_case(MHA, 64, 64, 1024),
    decode_case(GQA_64, 64, 64, 1024),
]


class _Rows(Journal):
    """Gives on the rows that hold."""

    def __init__(self, path: Path, emit: Callable[[Row], None]):
        super().__init__(path)
        self._emit = emit

    def add(self, row: Row) -> Row:
        if row["status"] not in UNDER_WAY:
            named = row | {"case": f"{row['case']} {row['implementation']}"}
            self._emit(named)
        return super().add(row)


def run(task: Task) -> None:
    """A row for each problem and compiler: microseconds, and the share of the floor."""
    rates = task.rates()
    if rates is None:
        raise NotHere("nobody has measured the ceilings: there is nothing to compare with")
    limits = None if task.tiny else Ceilings(rates.read_bytes_per_s, 0.0, rates.gemm_flop_per_s, {})
    rows = _Rows(task.work / "kernels.jsonl", task.emit)
    run = Run(rows, limits, rounds=0 if task.tiny else ROUNDS, interpret=task.tiny)
    cases = [decode_case(TINY, 16, 2, 48)] if task.tiny else CASES
    names = ("xla",) if task.tiny else COMPILERS
    measure_attention(cases, arms.builders("decode", names), run)
