"""Times the steps of whole models with random weights beside their floor.

    python -m bench.steps {decode,prefill} [--json FILE] [--ceilings FILE] [--seconds S] [--tiny]

A step is the engine's own compiled program, dispatched again and again without a scheduler. `decode`: 1 to
256 sequences, each with the same context; `prefill`: whole prompts that fill the step. The floor beside a
time is what the step must read and multiply at the rates that `ceilings` measured. What does not fit, is not
reached in time, or cannot run on the device is a row that says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bench.measure.floor import floor_of
from bench.measure.timing import Times
from bench.steps import step_model
from bench.steps.step_model import BACKENDS, Model, Rates, Rows, Size
from jbatch.config import EngineConfig, ModelConfig
from jbatch.device.platform import prepare_jax
from jbatch.model_dir.shapes import SHAPES, model_config
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.rows import RowSetup, row_columns
from jbatch.seam.step_input import StepFields, padding, unpack

ROUNDS = 5
CONTEXTS = {"llama3-8b": 1024, "llama2-7b": 512, "llama3.2-1b": 1024}  # of decode; KV of 7B: four times 8B's
SLOTS: tuple[int, ...] = (64, 1, 256, 8, 128, 32)  # the most telling first
PROMPTS: tuple[tuple[int, int], ...] = (
    (1, 2048),
    (8, 256),
    (1, 512),
    (1, 8192),
)  # how many, and their length
PREFILL_MODELS = ("llama3-8b", "llama2-7b")
TINY = Size("tiny", ModelConfig(96, 64, 96, 2, 4, 2, 64, 256, dtype="float32"), context=40, page_size=16)
TINY_SLOTS: tuple[int, ...] = (4, 1)
TINY_PROMPTS: tuple[tuple[int, int], ...] = ((1, 32), (2, 16))


class Case(NamedTuple):
    """A step of `number` sequences: a token of each where it decodes, their prompts where it prefills."""

    kind: str
    number: int
    length: int  # tokens in each one's cache, before a decode step and after a prefill step

    @property
    def bucket(self) -> Bucket:
        if self.kind == "decode":
            return decode_bucket(self.number)
        return prefill_bucket(self.number * self.length)

    def pack(self, model: Model) -> np.ndarray:
        """The step's input: rows 0 to `number`."""
        packed = padding(self.bucket, model.shape, Sampler.GREEDY).copy()
        fields = unpack(packed, self.bucket, model.shape, Sampler.GREEDY)
        if self.kind == "decode":
            fields.slot_rows[:] = np.arange(self.number)
        else:
            _fill(fields, self, model.config.vocab_size)
        return packed

    def floor(self, config: ModelConfig, calls: int, rates: Rates) -> float:
        """Seconds; a decode step's context grows by one token in each of the calls."""
        number, length, least = self.number, self.length, floor_of(config, *rates)
        if self.kind == "decode":
            return least.decode_s(number, round(number * (length + calls / 2)))
        pairs = number * length * (length + 1) // 2
        return least.step_s(number * length, number, number * length, pairs)


def _fill(fields: StepFields[np.ndarray], case: Case, vocab_size: int) -> None:
    """Prompts of random tokens, end to end, with a draw behind each."""
    number, length = case.number, case.length
    fields.tokens[:] = np.random.default_rng(0).integers(0, vocab_size, len(fields.tokens))
    fields.chunk_rows[:number] = fields.draw_rows[:number] = np.arange(number)
    fields.q_starts[:number] = length * np.arange(number)
    fields.q_lens[:number] = fields.kv_lens[:number] = length
    fields.draw_places[:number] = fields.q_starts[:number] + length - 1
    fields.has_setup[:number] = 1
    fields.setups[:number] = row_columns(RowSetup(length=length, budget=2**30))


def todo(kind: str, tiny: bool) -> list[tuple[Size, list[Case]]]:
    """What to measure of each model."""
    if kind == "decode":
        sizes = [TINY] if tiny else [_size(name, context) for name, context in CONTEXTS.items()]
        slots = TINY_SLOTS if tiny else SLOTS
        return [(size, [Case(kind, number, size.context) for number in slots]) for size in sizes]
    longest = max(length for _, length in PROMPTS)
    sizes = [TINY] if tiny else [_size(name, longest) for name in PREFILL_MODELS]
    prompts = TINY_PROMPTS if tiny else PROMPTS
    return [(size, [Case(kind, *prompt) for prompt in prompts]) for size in sizes]


def _size(name: str, context: int) -> Size:
    return Size(name, model_config(name, SHAPES[name].num_layers, 2 * context), context)


class Run(NamedTuple):
    """What all measurements share."""

    rates: Rates
    rounds: int
    rows: Rows

    def add(self, size: Size, case: Case, attention: str, **result: Any) -> None:
        row = {"model": size.name, **case._asdict(), "attention": attention, **result}
        self.rows.add(row, line(row))

    def not_run(self, size: Size, reason: str, case: Case) -> None:
        self.add(size, case, "all", status="not run", reason=reason)


def measure(size: Size, cases: Sequence[Case], run: Run, deadline: float) -> None:
    """A row for each case and each attention backend, or for why not; after the deadline (of time.monotonic)
    too. Of decode steps, only the first case is measured with every backend, the others with the fastest."""
    device = jax.devices()[0]
    too_large = {case: step_model.why_too_large(size, case.number, device) for case in cases}
    most = max((case.number for case in cases if not too_large[case]), default=0)
    model: Model | None = None
    known: list[str] = []  # backends that work, the fastest first
    for case in cases:
        late = "no time left" if time.monotonic() >= deadline else None
        lost = "a step before it failed" if model is not None and model.lost else None
        if reason := too_large[case] or late or lost:
            run.not_run(size, reason, case)
            continue
        model = model or Model(size, most, device)
        ms: dict[str, float] = {}
        for backend in known or BACKENDS:
            if not model.lost and not (known and ms):
                result = _measure_one(model, case, backend, run)
                run.add(size, case, backend, **result)
                ms |= {backend: result["ms"]} if result["status"] == "ok" else {}
        if case.kind == "decode":
            known = known or sorted(ms, key=lambda backend: ms[backend])
    if model is not None:
        model.close()


def _measure_one(model: Model, case: Case, backend: str, run: Run) -> dict[str, Any]:
    if reason := step_model.why_not(backend, model, case.bucket):
        return {"status": "not run", "reason": reason}
    begin = time.monotonic()
    try:
        program = step_model.compile_greedy(model, case.bucket, backend)
        compile_s = time.monotonic() - begin
        times = step_model.time_step(model, program, case.pack(model), case.number, run.rounds)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:  # the others go on
        return {"status": "failed", "reason": " ".join(str(error).split())[:300]}
    if isinstance(times, str):
        return {"status": "WRONG", "reason": times}
    return {"status": "ok", **figures(case, model.config, times, run.rates), "compile_s": compile_s}


def figures(case: Case, config: ModelConfig, times: Times, rates: Rates | None) -> dict[str, float]:
    """A step's figures, with the share of its floor where the device's rates are known."""
    found = {
        "ms": 1e3 * times.median,
        "ms_best": 1e3 * times.best,
        "ms_worst": 1e3 * times.worst,
        "calls": times.calls,
        "tokens_per_s": case.number * (1 if case.kind == "decode" else case.length) / times.median,
    }
    if rates is None:
        return found
    floor = case.floor(config, times.calls, rates)
    return found | {"floor_ms": 1e3 * floor, "share_of_floor": floor / times.median}


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    head = f"{row['model']:12} {row['kind']:8} {row['number']:4} x {row['length']:5}  {row['attention']:8}"
    if row["status"] != "ok":
        return f"{head} {row['status']}: {row['reason']}"
    return (
        f"{head} {row['ms']:8.3f} ms ({row['ms_best']:.3f} to {row['ms_worst']:.3f})"
        f"  floor {row['floor_ms']:8.3f}  {100 * row['share_of_floor']:5.1f} %"
        f"  {row['tokens_per_s']:9.0f} tokens/s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("decode", "prefill"))
    step_model.add_arguments(parser)
    args = parser.parse_args()
    begin = time.monotonic()
    prepare_jax(EngineConfig())
    rates = step_model.rates(args.ceilings, args.tiny)
    rows = Rows(args.json, {"kind": f"{args.kind}-steps", "tiny": args.tiny, "rates": rates._asdict()})
    run = Run(rates, 2 if args.tiny else ROUNDS, rows)
    sizes = todo(args.kind, args.tiny)
    for index, (size, cases) in enumerate(sizes, start=1):
        measure(size, cases, run, begin + args.seconds * index / len(sizes))  # so that each has its share
    return 1 if any(row["status"] in ("failed", "WRONG") for row in rows.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
