"""Runs steps on a device: parameters, state, and one compiled program per bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jbatch.attention import PLAIN, Attention
from jbatch.compile_counter import compile_counter
from jbatch.config import ModelConfig
from jbatch.errors import JBatchError
from jbatch.model import abstract_params
from jbatch.plan import Bucket, StepInput, StepOutput, check_table_updates, input_size, padding, unpack_output
from jbatch.sampling_params import Sampler
from jbatch.state import EngineState, StateShape
from jbatch.step import make_step

COMPILE_THREADS = 4  # XLA compiles outside Python's lock


class Program(NamedTuple):
    """What a compiled step is looked up by."""

    bucket: Bucket
    sampler: Sampler


def programs_for(buckets: Iterable[Bucket]) -> list[Program]:
    """All programs of an engine: decode steps with every sampler, prefill steps with the one that does it
    all, whose cost hides behind the prompt's."""
    return [
        Program(bucket, sampler)
        for bucket in buckets
        for sampler in (Sampler if bucket.kind == "decode" else (Sampler.FILTERED,))
    ]


def largest_programs(buckets: Iterable[Bucket]) -> list[Program]:
    """Of each kind, the program whose temporaries are the largest."""
    programs = sorted(programs_for(buckets), key=lambda program: (program.bucket.tokens, program.sampler))
    return list({program.bucket.kind: program for program in programs}.values())


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
    ):
        self.config, self.shape, self.device, self.attention = config, shape, device, attention
        self._params: tuple[jax.Array, ...] = tuple(params[name] for name in abstract_params(config))
        programs = programs_for(buckets)
        self._programs = compile_programs(config, shape, programs, device, on_compiled, attention)
        self._state: EngineState | None = shape.zeros(config, device)
        if device.platform != "cpu":
            self.warm_up()
        self._compiled_before = compile_counter().count

    @property
    def num_programs(self) -> int:
        return len(self._programs)

    @property
    def compilations_after_warmup(self) -> int:
        """Programs that this process compiled since the runner was ready: 0, unless others use JAX too."""
        return compile_counter().count - self._compiled_before

    def submit(self, step: StepInput) -> jax.Array:
        """Dispatch a step; the handle is its output, still on the device.

        Raises JBatchError after `close`, after a step that failed on the device and took the state along, and
        for pages that do not exist.
        """
        if self._state is None or self._state.rows.is_deleted():
            raise JBatchError("this runner was closed, or one of its steps failed: make a new one")
        check_table_updates(step, **self.shape._asdict())
        sampler = step.sampler if step.bucket.kind == "decode" else Sampler.FILTERED
        program = self._programs[Program(step.bucket, sampler)]
        self._state, output = program(self._params, self._state, step.packed)
        output.copy_to_host_async()
        return output

    def collect(self, handle: jax.Array) -> tuple[StepOutput, float]:
        """Wait for a step's output; with it, when the host had it (time.monotonic, seconds)."""
        packed = np.asarray(handle)
        return unpack_output(packed), time.monotonic()

    def close(self) -> None:
        """Free the device's memory."""
        for leaf in jax.tree.leaves((self._params, self._state)):
            if not leaf.is_deleted():
                leaf.delete()
        self._state, self._params, self._programs = None, (), {}

    def warm_up(self) -> None:
        """Run every program once on padding, which changes nothing: a GPU loads code at its first call."""
        for bucket, sampler in self._programs:
            packed = padding(bucket, self.shape.num_rows, self.shape.page_size)
            self.collect(self.submit(StepInput(bucket, sampler, packed)))


def compile_programs(
    config: ModelConfig,
    shape: StateShape,
    programs: Iterable[Program],
    device: jax.Device,
    on_compiled: Callable[[int], None] = lambda done: None,
    attention: Attention = PLAIN,
) -> dict[Program, jax.stages.Compiled]:
    """Compile each program for `device`. `on_compiled(number)` follows the progress."""
    programs = list(programs)
    compiled: dict[Program, jax.stages.Compiled] = {}
    pool = ThreadPoolExecutor(COMPILE_THREADS)
    try:
        results = pool.map(lambda program: compile_step(config, shape, program, device, attention), programs)
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
) -> jax.stages.Compiled:
    """One program, ahead of time, for shapes alone: no memory is taken."""
    return lower_step(config, shape, program, device, attention).compile()


def temp_bytes(
    config: ModelConfig,
    shape: StateShape,
    program: Program,
    device: jax.Device | Any,
    attention: Attention = PLAIN,
) -> int:
    """Temporary memory of a program, as its compiler says. It does not grow with the pool."""
    analysis: Any = compile_step(config, shape, program, device, attention).memory_analysis()
    return analysis.temp_size_in_bytes


def lower_step(
    config: ModelConfig,
    shape: StateShape,
    program: Program,
    device: jax.Device | Any,
    attention: Attention = PLAIN,
) -> jax.stages.Lowered:
    """One program, traced but not compiled."""
    sharding = jax.sharding.SingleDeviceSharding(device)

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = tuple(placed(leaf) for leaf in abstract_params(config).values())
    state = jax.tree.map(placed, shape.abstract(config))
    packed = placed(jax.ShapeDtypeStruct((input_size(program.bucket, shape.page_size),), jnp.int32))
    step = make_step(config, program.bucket, shape.page_size, sampler=program.sampler, attention=attention)
    # float32 means float32 on a GPU too, not TensorFloat-32.
    precision = "highest" if config.dtype == "float32" else None
    with jax.default_matmul_precision(precision):
        return jax.jit(step, donate_argnums=1).lower(params, state, packed)
