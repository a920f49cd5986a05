"""Whole steps beside their floor, with XLA's options and ways of drawing: compiled together, then timed.

flag-sweep     a decode step of 4 layers of Llama-3 8B for 64 sequences with each set of options; then for
               1 and 256 with the two best
steps-8b       Llama-3 8B in full: 64, 1 and 256 sequences, and 64 with the sweep's best options
filtered       the same for 64 sequences that draw with top-k and top-p, without and with loops in graphs
prefill        prompts of 2,048 and of 512 tokens
steps-others   Llama-3.2 1B and Llama-2 7B for 64 sequences
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bench.gpu_suite import dumps
from bench.gpu_suite.plan import BY_NAME
from bench.gpu_suite.task import Compiled, Row, Task, compile_all, reason_of
from bench.steps import step_model
from bench.steps.command import CONTEXTS, TINY, Case, figures
from bench.steps.step_model import GREEDY, Model, Size, state_shape
from jbatch.device.compiler_options import SUMS_IN_PRODUCTS, WHOLE_PRODUCTS, options_for
from jbatch.device.programs import StepSpec, program_for, temp_bytes
from jbatch.model_dir.shapes import SHAPES, model_config
from jbatch.sampler import Sampler
from jbatch.seam.rows import RowSetup

ROUNDS, TINY_ROUNDS = 5, 1
ENGINE = "the engine's"  # options
SWEPT_LAYERS = 4
CUBLAS = {"xla_gpu_enable_triton_gemm": False}
GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,DYNAMIC_SLICE_FUSION"  # XLA's default
# Options of a compiled program, in place of the engine's.
SWEPT: dict[str, dict[str, Any]] = {
    "XLA's own": {},
    "no split-K": WHOLE_PRODUCTS,
    "no split-K, sums in products": WHOLE_PRODUCTS | SUMS_IN_PRODUCTS,
    "no split-K, cuBLAS": WHOLE_PRODUCTS | CUBLAS,
}
# And beside them. A list must be given as a whole: "+WHILE" works in XLA_FLAGS alone.
ADDED: dict[str, dict[str, Any]] = {
    ENGINE: {},
    "loops in graphs": {"xla_gpu_enable_command_buffer": f"{GRAPHS},WHILE"},
}
LIKELY = RowSetup(temperature=0.8, top_k=50, top_p=0.95)  # what filtered requests ask for


class Variant(NamedTuple):
    """A step to compile and to time."""

    case: Case
    flags: str = ENGINE
    sampler: Sampler = Sampler.GREEDY

    def options(self, device: jax.Device) -> dict[str, Any]:
        """What XLA is told."""
        if self.flags in SWEPT:
            return SWEPT[self.flags]
        return options_for(device, self.case.bucket) | ADDED[self.flags]


class Bench:
    """A model's steps in one part: its variants come in waves, and its weights when the first is compiled."""

    def __init__(self, task: Task, size: Size, num_rows: int, drawing: RowSetup = GREEDY):
        self.task, self.size = task, size
        self._shape = state_shape(size, num_rows)
        self._attention = task.attention()
        device = jax.devices()[0]
        self._spec = StepSpec(size.config, self._shape, device, self._attention)
        self._too_large = step_model.why_too_large(size, num_rows, device)
        self._make_model = functools.partial(Model, size, num_rows, device, drawing)
        self._model: Model | None = None

    def wave(self, number: int, variants: Sequence[Variant]) -> list[Row]:
        """Compile variants together, then time them: their rows. `number` is the wave's in the part."""
        if self._too_large:
            return [
                self._emit(variant, {"status": "not run", "reason": self._too_large}) for variant in variants
            ]
        waves = BY_NAME[self.task.part].waves
        kept_s = sum(wave.measure_s for wave in waves[number:]) + (0 if self._model else self._setup_s)
        jobs = {variant: functools.partial(self._compile, variant) for variant in variants}
        outcomes = compile_all(jobs, waves[number].at_once, self.task.left_s - kept_s)
        return [self._emit(variant, self._time(variant, outcome)) for variant, outcome in outcomes.items()]

    def close(self) -> None:
        """Free the device's memory."""
        if self._model is not None:
            self._model.close()
            self._model = None

    @property
    def _setup_s(self) -> float:
        return BY_NAME[self.task.part].setup_s

    def _compile(self, variant: Variant) -> jax.stages.Compiled:
        options = variant.options(self._spec.device) | {"xla_dump_to": str(self._dump(variant))}
        return self._spec.lower(program_for(variant.case.bucket, variant.sampler)).compile(options)

    def _dump(self, variant: Variant) -> Path:
        return self.task.work / "dump" / re.sub(r"\W+", "-", self._name(variant))

    def _time(self, variant: Variant, outcome: Compiled[jax.stages.Compiled] | str) -> Row:
        if isinstance(outcome, str):
            return {"status": "failed", "reason": outcome}
        dump = self._dump(variant)
        row: Row = {"compile_s": outcome.seconds, "temp_bytes": temp_bytes(outcome.program)}
        row["graphs"] = dumps.keep(dump, self.task.work, dump.name)
        if self.task.left_s <= 0:
            return row | {"status": "not run", "reason": "no time left"}
        try:
            self._model = self._model or self._make_model()
            if self._model.lost:
                return row | {"status": "not run", "reason": "a step before it failed on the device"}
            rounds = TINY_ROUNDS if self.task.tiny else ROUNDS
            case, packed = variant.case, variant.case.pack(self._model)
            times = step_model.time_step(self._model, outcome.program, packed, case.number, rounds)
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # the others go on
            return row | {"status": "failed", "reason": reason_of(error)}
        if isinstance(times, str):
            return row | {"status": "WRONG", "reason": times}
        return row | {"status": "ok", **figures(case, self.size.config, times, self.task.rates())}

    def _name(self, variant: Variant) -> str:
        (kind, number, length), flags, sampler = variant
        return f"{self.size.name} {kind} {number} x {length} {sampler.name.lower()}, {flags}"

    def _emit(self, variant: Variant, result: Row) -> Row:
        row = {
            "case": self._name(variant),
            "model": self.size.name,
            **variant.case._asdict(),
            "sampler": variant.sampler.name.lower(),
            "flags": variant.flags,
            "attention": self._attention.decode if variant.case.kind == "decode" else self._attention.prefill,
            **result,
        }
        self.task.emit(row)
        return row


def run(task: Task) -> None:
    """One of the parts that the module's docstring lists."""
    RUNS[task.part](task)


def _decode(number: int, size: Size) -> Case:
    return Case("decode", number, size.context)


def _sweep(task: Task) -> None:
    size, (middle, *others) = _size(task, "llama3-8b", SWEPT_LAYERS), _numbers(task)
    bench = Bench(task, size, max(middle, *others))
    first = bench.wave(0, [Variant(_decode(middle, size), flags) for flags in SWEPT])
    best = [row["flags"] for row in sorted(_timed(first), key=lambda row: row["ms"])[:2]]
    bench.wave(1, [Variant(_decode(number, size), flags) for flags in best for number in others])


def _full(task: Task) -> None:
    size, numbers = _size(task, "llama3-8b"), _numbers(task)
    variants = [Variant(_decode(number, size)) for number in numbers]
    best = variants[0]._replace(flags=best_flags(task))
    if best.options(jax.devices()[0]) != variants[0].options(jax.devices()[0]):
        variants.append(best)
    Bench(task, size, max(numbers)).wave(0, variants)


def _filtered(task: Task) -> None:
    size, number = _size(task, "llama3-8b"), _numbers(task)[0]
    variants = [Variant(_decode(number, size), flags, Sampler.FILTERED) for flags in ADDED]
    Bench(task, size, number, LIKELY).wave(0, variants)


def _prefill(task: Task) -> None:
    lengths = (32, 16) if task.tiny else (2048, 512)
    size = _size(task, "llama3-8b")._replace(context=max(lengths))
    Bench(task, size, 1).wave(0, [Variant(Case("prefill", 1, length)) for length in lengths])


def _others(task: Task) -> None:
    number = _numbers(task)[0]
    for wave, name in enumerate(("llama3.2-1b", "llama2-7b")):
        size = _size(task, name)
        bench = Bench(task, size, number)
        bench.wave(wave, [Variant(_decode(number, size))])
        bench.close()


RUNS: dict[str, Callable[[Task], None]] = {
    "flag-sweep": _sweep,
    "steps-8b": _full,
    "filtered": _filtered,
    "prefill": _prefill,
    "steps-others": _others,
}


def best_flags(task: Task) -> str:
    """The options with which the sweep's step for most telling number of sequences was fastest."""
    rows = list(_timed(task.earlier.get("flag-sweep", ())))
    same = [row for row in rows if row["number"] == rows[0]["number"]]
    return min(same, key=lambda row: row["ms"])["flags"] if same else ENGINE


def _timed(rows: Sequence[Row]) -> Iterator[Row]:
    return (row for row in rows if row["status"] == "ok")


def _numbers(task: Task) -> tuple[int, ...]:
    """Sequences of decode steps, the most telling first."""
    return (4, 1) if task.tiny else (64, 1, 256)


def _size(task: Task, name: str, num_layers: int | None = None) -> Size:
    if task.tiny:
        return TINY
    layers, context = num_layers or SHAPES[name].num_layers, CONTEXTS[name]
    config = model_config(name, layers, 2 * max(CONTEXTS.values()))
    return Size(name if num_layers is None else f"{name}, {layers} layers", config, context)
