"""Runs steps on a device: parameters, state, and one compiled program per bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jbatch.config import ModelConfig
from jbatch.device.backend import PLAIN, Attention
from jbatch.device.compile_counter import compile_counter
from jbatch.device.logits import LogitsFn
from jbatch.device.model import abstract_params
from jbatch.device.state import EngineState, ExtraState, StateShape, set_row
from jbatch.device.step import make_step
from jbatch.errors import JBatchError
from jbatch.host.plan import (
    Bucket,
    StepInput,
    StepOutput,
    check_table_updates,
    input_size,
    padding,
    unpack_output,
)
from jbatch.host.row_data import row_data_size
from jbatch.sampling_params import Sampler

COMPILE_THREADS = 4  # XLA compiles outside Python's lock


class Program(NamedTuple):
    """What a compiled step is looked up by."""

    bucket: Bucket
    sampler: Sampler


class Variants(NamedTuple):
    """The ways of drawing tokens that are compiled at first, and the user's function in EXTENDED ones."""

    samplers: tuple[Sampler, ...] = (Sampler.GREEDY, Sampler.PLAIN, Sampler.FILTERED)
    logits_fn: LogitsFn | None = None


def programs_for(
    buckets: Iterable[Bucket], samplers: Iterable[Sampler] = Variants().samplers
) -> list[Program]:
    """All programs of an engine: decode steps with each sampler; prefill steps with FILTERED instead of those
    below it, since its cost hides behind the prompt's."""
    samplers = sorted(set(samplers))
    return [
        Program(bucket, sampler)
        for bucket in buckets
        for sampler in dict.fromkeys(_program_sampler(bucket, sampler) for sampler in samplers)
    ]


def largest_programs(buckets: Iterable[Bucket]) -> list[Program]:
    """Of each kind, the program whose temporaries are the largest."""
    largest = {bucket.kind: bucket for bucket in sorted(buckets, key=lambda bucket: bucket.tokens)}
    return [Program(bucket, Sampler.EXTENDED) for bucket in largest.values()]


def _program_sampler(bucket: Bucket, sampler: Sampler) -> Sampler:
    return sampler if bucket.kind == "decode" else max(sampler, Sampler.FILTERED)


class Handle(NamedTuple):
    """A step that was dispatched: its packed output, still on the device, and how to read it."""

    output: jax.Array
    bucket: Bucket
    sampler: Sampler


class Runner:
    """The device side of the engine. `submit` returns at once; `collect` waits.

    Programs are compiled ahead of time for fixed shapes, so an input that does not fit one is a KeyError
    or a TypeError: a recompilation cannot happen.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, jax.Array],
        shape: StateShape,
        buckets: Iterable[Bucket],
        device: jax.Device,
        on_compiled: Callable[[int], None] = lambda done: None,
        attention: Attention = PLAIN,
        variants: Variants = Variants(),  # noqa: B008 (immutable)
    ):
        self.config, self.shape, self.device, self.attention = config, shape, device, attention
        self._params: tuple[jax.Array, ...] = tuple(params[name] for name in abstract_params(config))
        self._buckets, self._logits_fn = tuple(buckets), variants.logits_fn
        self._programs: dict[Program, jax.stages.Compiled] = {}
        self._state: EngineState | None = shape.zeros(config, device)
        self._extra: ExtraState | None = None  # until EXTENDED steps are compiled
        self._set_row: Any = None
        self.samplers: tuple[Sampler, ...] = ()
        self._compiled_before = compile_counter().count
        self.prepare(variants.samplers, on_compiled)
        self._compiled_before = compile_counter().count

    def prepare(
        self, samplers: Iterable[Sampler], on_compiled: Callable[[int], None] = lambda done: None
    ) -> None:
        """Compile what these ways of drawing tokens take, as far as it is missing."""
        before = compile_counter().count
        missing = self.missing_programs(samplers)
        if missing and self._extra is None and any(p.sampler == Sampler.EXTENDED for p in missing):
            self._set_row = compile_set_row(self.config, self.shape, self.device)
            self._extra = self.shape.extra_zeros(self.config, self.device)
        compiled = compile_programs(
            self.config, self.shape, missing, self.device, on_compiled, self.attention, self._logits_fn
        )
        self._programs |= compiled
        self.samplers = tuple(sorted({*self.samplers, *samplers}))
        if self.device.platform != "cpu":
            self.warm_up(compiled)
        self._compiled_before += compile_counter().count - before

    def missing_programs(self, samplers: Iterable[Sampler]) -> list[Program]:
        """What `prepare` would compile."""
        return [p for p in programs_for(self._buckets, samplers) if p not in self._programs]

    @property
    def params(self) -> dict[str, jax.Array]:
        """The parameters by name, on the device; empty after `close`."""
        return dict(zip(abstract_params(self.config), self._params, strict=False))

    @property
    def num_programs(self) -> int:
        return len(self._programs)

    @property
    def compilations_after_warmup(self) -> int:
        """Programs that this process compiled since the runner was ready, but for `prepare`: 0, unless others
        use JAX too."""
        return compile_counter().count - self._compiled_before

    def submit(self, step: StepInput) -> Handle:
        """Dispatch a step; what comes back is for `collect`.

        Raises JBatchError after `close`, after a step that failed on the device and took the state along, and
        for pages that do not exist.
        """
        if self._state is None or self._state.rows.is_deleted():
            raise JBatchError("this runner was closed, or one of its steps failed: make a new one")
        check_table_updates(step, **self.shape._asdict())
        program = self._programs[Program(step.bucket, _program_sampler(step.bucket, step.sampler))]
        if step.sampler == Sampler.EXTENDED:
            for row in step.row_data:
                self._extra = self._set_row(self._extra, row)
            arguments = self._params, self._state, self._extra, step.packed
            self._state, self._extra, output = program(*arguments)
        else:
            self._state, output = program(self._params, self._state, step.packed)
        output.copy_to_host_async()
        return Handle(output, step.bucket, step.sampler)

    def collect(self, handle: Handle) -> tuple[StepOutput, float]:
        """Wait for a step's output; with it, when the host had it (time.monotonic, seconds)."""
        packed = np.asarray(handle.output)
        return unpack_output(packed, handle.bucket, handle.sampler), time.monotonic()

    def close(self) -> None:
        """Free the device's memory."""
        for leaf in jax.tree.leaves((self._params, self._state, self._extra)):
            if not leaf.is_deleted():
                leaf.delete()
        self._state, self._extra, self._params, self._programs = None, None, (), {}

    def warm_up(self, programs: Iterable[Program] | None = None) -> None:
        """Run each program once on padding, which changes nothing: a GPU loads code at its first call."""
        num_rows = self.shape.num_rows
        for bucket, sampler in self._programs if programs is None else programs:
            packed = padding(bucket, num_rows, self.shape.page_size, sampler)
            no_row = np.full(row_data_size(self.config.vocab_size), num_rows, np.int32)
            row_data = (no_row,) if sampler == Sampler.EXTENDED else ()
            self.collect(self.submit(StepInput(bucket, sampler, packed, row_data)))


def compile_programs(
    config: ModelConfig,
    shape: StateShape,
    programs: Iterable[Program],
    device: jax.Device,
    on_compiled: Callable[[int], None] = lambda done: None,
    attention: Attention = PLAIN,
    logits_fn: LogitsFn | None = None,
) -> dict[Program, jax.stages.Compiled]:
    """Compile each program for `device`. `on_compiled(number)` follows the progress."""
    programs = list(programs)
    compiled: dict[Program, jax.stages.Compiled] = {}
    pool = ThreadPoolExecutor(COMPILE_THREADS)
    try:
        results = pool.map(
            lambda program: compile_step(config, shape, program, device, attention, logits_fn), programs
        )
        for program, result in zip(programs, results, strict=True):
            compiled[program] = result
            on_compiled(len(compiled))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # at an interrupt, the rest is not compiled
    return compiled


def compile_step(
    config: ModelConfig,
    shape: StateShape,
    program: Program,
    device: jax.Device | Any,
    attention: Attention = PLAIN,
    logits_fn: LogitsFn | None = None,
) -> jax.stages.Compiled:
    """One program, ahead of time, for shapes alone: no memory is taken."""
    return lower_step(config, shape, program, device, attention, logits_fn).compile()


def temp_bytes(
    config: ModelConfig,
    shape: StateShape,
    program: Program,
    device: jax.Device | Any,
    attention: Attention = PLAIN,
    logits_fn: LogitsFn | None = None,
) -> int:
    """Temporary memory of a program, as its compiler says. It does not grow with the pool."""
    compiled = compile_step(config, shape, program, device, attention, logits_fn)
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes


def lower_step(
    config: ModelConfig,
    shape: StateShape,
    program: Program,
    device: jax.Device | Any,
    attention: Attention = PLAIN,
    logits_fn: LogitsFn | None = None,
) -> jax.stages.Lowered:
    """One program, traced but not compiled."""
    bucket, sampler = program
    states: tuple[Any, ...] = (shape.abstract(config),)
    if sampler == Sampler.EXTENDED:
        states += (shape.abstract_extra(config),)
    packed = jax.ShapeDtypeStruct((input_size(bucket, shape.page_size, sampler),), jnp.int32)
    params = tuple(abstract_params(config).values())
    step = make_step(
        config, bucket, shape.page_size, sampler=sampler, attention=attention, logits_fn=logits_fn
    )
    # float32 means float32 on a GPU too, not TensorFloat-32.
    precision = "highest" if config.dtype == "float32" else None
    with jax.default_matmul_precision(precision):
        donated = tuple(range(1, 1 + len(states)))
        return jax.jit(step, donate_argnums=donated).lower(*_placed((params, *states, packed), device))


def compile_set_row(config: ModelConfig, shape: StateShape, device: jax.Device | Any) -> jax.stages.Compiled:
    """The program that puts a RowData in place."""
    packed = jax.ShapeDtypeStruct((row_data_size(config.vocab_size),), jnp.int32)
    arguments = _placed((shape.abstract_extra(config), packed), device)
    return jax.jit(set_row, donate_argnums=0).lower(*arguments).compile()


def _placed(tree: Any, device: jax.Device | Any) -> Any:
    """Abstract arrays, on `device`."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
