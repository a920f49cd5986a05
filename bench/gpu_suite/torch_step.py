"""One decode step of Llama-3 8B for 64 sequences, of XLA and of the PyTorch executor: same input, weights and
lengths, in turns.

PyTorch's decode step is one CUDA graph, as it is in a running engine there; its steps with prompts would be
launched kernel by kernel, and are not compared here. The row says so.
"""

from __future__ import annotations

import importlib.util

from bench.gpu_suite.task import NotHere, Row, Task
from bench.steps.command import CONTEXTS, TINY, Case
from bench.steps.step_model import Rates, Size
from jbatch.distribution import install_hint
from jbatch.model_dir.shapes import SHAPES, model_config

MODEL, SLOTS, ROUNDS = "llama3-8b", 64, 9
NOTE = "torch: decode buckets are CUDA graphs, steps with prompts are not (none is timed here)"


def run(task: Task) -> None:
    """Two rows, XLA's and PyTorch's."""
    if importlib.util.find_spec("torch") is None:
        raise NotHere(f"torch is not installed: {install_hint('bench')}")
    from bench.compare.steps import measure

    context = CONTEXTS[MODEL]
    size = Size(MODEL, model_config(MODEL, SHAPES[MODEL].num_layers, 2 * context), context)
    size, number, rounds = (TINY, 2, 1) if task.tiny else (size, SLOTS, ROUNDS)

    def emit(row: Row, line: str) -> None:
        if task.rates() is None:
            row = {key: value for key, value in row.items() if key not in ("floor_ms", "share_of_floor")}
        name = f"{row['model']} {row['kind']} {row['number']} x {row['length']} {row['arm']}"
        task.emit({"case": name, "status": "ok", **row, "note": NOTE})

    rates = task.rates() or Rates(float("inf"), float("inf"))
    measure(size, [Case("decode", number, size.context)], rates, rounds, emit, task.attention())
