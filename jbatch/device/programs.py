"""The programs of an engine: steps compiled ahead of time, for shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jbatch.config import LogprobsMode, ModelConfig
from jbatch.device import sharding
from jbatch.device.backend import PLAIN, Attention
from jbatch.device.compiled import compile_anew_if_foreign
from jbatch.device.compiler_options import options_for
from jbatch.device.draws import Drawing
from jbatch.device.model import abstract_params
from jbatch.device.process import abstract_extra, features_of, mask
from jbatch.device.process.user_fn import LogitsFn
from jbatch.device.ranks import Ranks
from jbatch.device.settings import call, call_together, fixed_settings
from jbatch.device.state import EngineState, abstract_state
from jbatch.device.step import make_step
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket
from jbatch.seam.row_data import row_data_size
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import input_size
from jbatch.seam.step_output import num_draws
from pallas_kernels import copy_pages

COMPILE_THREADS = 4  # XLA compiles outside Python's lock
COPIES = 64  # pages that one dispatch copies
TABLES = 16  # block tables that one dispatch puts in place
READS = 8  # pages that one dispatch reads
DEFAULT_SAMPLERS = (Sampler.GREEDY, Sampler.PLAIN, Sampler.FILTERED)  # the others are compiled on demand


class Program(NamedTuple):
    """What a compiled step is looked up by."""

    bucket: Bucket
    sampler: Sampler


def program_for(bucket: Bucket, sampler: Sampler) -> Program:
    """The program that serves requests of `sampler`. A step with prompts can always filter, which keeps the
    number of programs small."""
    return Program(bucket, sampler.union(Sampler.FILTERED) if bucket.tokens else sampler)


def programs_for(buckets: Iterable[Bucket], samplers: Iterable[Sampler] = DEFAULT_SAMPLERS) -> list[Program]:
    """All programs of an engine."""
    samplers = sorted(set(samplers))
    return list(dict.fromkeys(program_for(bucket, sampler) for bucket in buckets for sampler in samplers))


def temp_bytes(compiled: jax.stages.Compiled) -> int:
    """Temporary memory of a program, as its compiler says. It does not grow with the pool."""
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes


class StepSpec(NamedTuple):
    """All that an engine's programs have in common."""

    config: ModelConfig
    shape: StateShape
    device: jax.Device | Any  # or one that can only be compiled for
    attention: Attention = PLAIN
    logits_fn: LogitsFn | None = None
    logprobs_mode: LogprobsMode = "raw_logprobs"
    mesh: Mesh | AbstractMesh | None = None  # of the devices that compute each step; None: `device` alone

    @property
    def ranks(self) -> Ranks:
        return Ranks(1 if self.mesh is None else self.mesh.size)

    @property
    def part(self) -> ModelConfig:
        """What each device computes, as a model of its own."""
        return self.config.split(self.ranks.size)

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The parameters by name, as they lie on the devices."""
        like = abstract_params(self.part)
        return dict(zip(like, self._placed(tuple(like.values()), self._param_specs), strict=True))

    @property
    def state(self) -> EngineState:
        """An EngineState, as it lies on the devices, without memory."""
        placed: EngineState = self._placed(abstract_state(self.part, self.shape), sharding.STATE)
        return placed

    def feature_state(self, feature: str) -> Any:
        """The state of one feature, as it lies on the devices, without memory."""
        module = features_of(Sampler.EXTENDED)[feature]
        return self._placed(module.abstract(self.shape.num_rows, self.config.vocab_size))

    @property
    def everywhere(self) -> jax.sharding.Sharding:
        """Where an array lies that each device has as a whole."""
        return self._sharding(sharding.WHOLE)

    @property
    def call(self) -> Callable[..., Any]:
        """How a program is called: of several devices of a CPU one after the other."""
        return call if self.mesh is None or self.device.platform != "cpu" else call_together

    def lower(self, program: Program) -> jax.stages.Lowered:
        """A program, traced but not compiled. No memory is taken."""
        bucket, sampler = program
        draws, vocab_size = num_draws(bucket, self.shape), self.config.vocab_size
        leaf: Any = jax.ShapeDtypeStruct
        arguments = (
            tuple(self.params.values()),
            self.state,
            self._placed(abstract_extra(sampler, self.shape.num_rows, vocab_size)),
            self._placed(leaf((input_size(bucket, self.shape, sampler),), jnp.int32)),
            self._placed(leaf((draws, mask.num_words(vocab_size)), jnp.int32)) if sampler.processes else None,
        )
        drawing = Drawing(sampler, self.logits_fn, self.logprobs_mode)
        step = make_step(self.config, self.shape, bucket, drawing, self.attention, self.ranks)
        whole, state = sharding.WHOLE, sharding.STATE
        step = self._on_ranks(step, (self._param_specs, state, whole, whole, whole), (state, whole, whole))
        # float32 means float32 on a GPU too, not TensorFloat-32.
        precision = "highest" if self.config.dtype == "float32" else None
        with fixed_settings(precision):
            return jax.jit(step, donate_argnums=(1, 2)).lower(*arguments)

    def compile(self, program: Program) -> jax.stages.Compiled:
        """A program, ahead of time. No memory is taken."""
        options = options_for(self.device, program.bucket)
        return compile_anew_if_foreign(lambda: self.lower(program), options)

    def compile_all(
        self, programs: Iterable[Program], on_compiled: Callable[[int], None] = lambda done: None
    ) -> dict[Program, jax.stages.Compiled]:
        """Several programs at once. `on_compiled(number)` follows the progress."""
        programs = list(programs)
        compiled: dict[Program, jax.stages.Compiled] = {}
        pool = ThreadPoolExecutor(COMPILE_THREADS)
        try:
            for program, result in zip(programs, pool.map(self.compile, programs), strict=True):
                compiled[program] = result
                on_compiled(len(compiled))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # at an interrupt, the rest is not compiled
        return compiled

    def compile_set_row(self, feature: str) -> jax.stages.Compiled:
        """The program that puts a row's data of one feature in place."""
        packed = jax.ShapeDtypeStruct((row_data_size(feature, self.config.vocab_size),), jnp.int32)
        arguments = self.feature_state(feature), self._placed(packed)
        whole = sharding.WHOLE
        set_row = self._on_ranks(features_of(Sampler.EXTENDED)[feature].set_row, (whole, whole), whole)

        def lower() -> jax.stages.Lowered:
            with fixed_settings():
                return jax.jit(set_row, donate_argnums=0).lower(*arguments)

        return compile_anew_if_foreign(lower)

    def compile_copy(self) -> jax.stages.Compiled:
        """The program that copies up to COPIES pages, (from, to), in all layers."""

        def copy(state: EngineState, pairs: jax.Array) -> EngineState:
            copied = tuple(copy_pages(pages, pairs[:, 0], pairs[:, 1]) for pages in state.kv_pages)
            return state._replace(kv_pages=copied)

        return self._compile_on_state(copy, (COPIES, 2))

    def compile_tables(self) -> jax.stages.Compiled:
        """The program that puts up to TABLES block tables in place, each a row and its pages."""

        def put(state: EngineState, tables: jax.Array) -> EngineState:
            written = state.block_tables.at[tables[:, 0]].set(tables[:, 1:], mode="drop")
            return state._replace(block_tables=written)

        return self._compile_on_state(put, (TABLES, 1 + self.shape.pages_per_seq))

    def compile_read(self) -> jax.stages.Compiled:
        """The program that gives what READS pages hold: [layers, READS, 2, kv_heads, page_size, head_dim]."""

        def read(state: EngineState, page_ids: jax.Array) -> jax.Array:
            return jnp.stack([pages[page_ids] for pages in state.kv_pages])

        return self._compile_on_state(read, (READS,), changes=False)

    def _compile_on_state(
        self, function: Callable[[EngineState, jax.Array], Any], shape: tuple[int, ...], changes: bool = True
    ) -> jax.stages.Compiled:
        """A function of the state, which it changes in place or only reads, and an integer array."""
        arguments = self.state, self._placed(jax.ShapeDtypeStruct(shape, jnp.int32))
        result = sharding.STATE if changes else sharding.PAGES_READ
        on_ranks = self._on_ranks(function, (sharding.STATE, sharding.WHOLE), result)

        def lower() -> jax.stages.Lowered:
            with fixed_settings():
                return jax.jit(on_ranks, donate_argnums=0 if changes else ()).lower(*arguments)

        return compile_anew_if_foreign(lower)

    @property
    def _param_specs(self) -> tuple[PartitionSpec, ...]:
        return tuple(map(sharding.spec_of, abstract_params(self.config)))

    def _on_ranks(self, function: Callable[..., Any], given: Any, result: Any) -> Callable[..., Any]:
        """A function that each device calls with its parts, cut as `given` says, for its part of `result`.

        Nothing is left to XLA's partitioner: it would gather what it does not understand, as a kernel's
        operands.
        """
        if self.mesh is None:
            return function
        # Not checked: a kernel does not say what of its results is the same on all devices.
        return jax.shard_map(function, mesh=self.mesh, in_specs=given, out_specs=result, check_vma=False)

    def _placed(self, tree: Any, specs: Any = sharding.WHOLE) -> Any:
        """Abstract arrays as they lie on the devices, each of which has arrays like those in `tree`."""

        def placed(spec: PartitionSpec, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            if self.mesh is None:
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding(spec))
            return sharding.joined(leaf, spec, self.mesh)

        def of_spec(spec: PartitionSpec, leaves: Any) -> Any:
            return jax.tree.map(lambda leaf: placed(spec, leaf), leaves)

        return jax.tree.map(of_spec, specs, tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))

    def _sharding(self, spec: PartitionSpec) -> jax.sharding.Sharding:
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(self.device)
        return NamedSharding(self.mesh, spec)
