"""Runs steps on a device: parameters, state, and one compiled program per bucket and way of drawing."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Shaped

import weights
from jbatch.device.compile_counter import compile_counter
from jbatch.device.model import abstract_params
from jbatch.device.process import ExtraState, features_of, mask
from jbatch.device.profile import Profile
from jbatch.device.programs import (
    COPIES,
    DEFAULT_SAMPLERS,
    READS,
    TABLES,
    Program,
    StepSpec,
    program_for,
    programs_for,
)
from jbatch.device.settings import call, fixed_settings
from jbatch.device.state import EngineState, abstract_state, zeros
from jbatch.errors import JBatchError
from jbatch.outputs import Label
from jbatch.progress import progress_bar
from jbatch.sampling_params import Sampler, with_unions
from jbatch.seam.bucket import Bucket
from jbatch.seam.row_data import RowData, row_data_size
from jbatch.seam.step_input import StepInput, check_pages, padding
from jbatch.seam.step_output import StepOutput, num_draws, unpack_output
from jbatch.seam.tenancy import Tenancy

CLOSED = "it was closed, and its memory is free: make a new one"
HALF_REPLACED = (
    "its weights are half old and half new: an update ended at parameter {name}; call update_weights with a "
    "whole tree once more, or make a new LLM"
)
DELETED = (
    "parameter {name} was deleted, or donated to a function: what weights() gives is the engine's own; call "
    "update_weights with a whole tree, or make a new LLM"
)
KV = Shaped[np.ndarray, "layers 2 tokens kv_heads head_dim"]
ALL_BITS = -1  # of a mask of tokens


class Handle(NamedTuple):
    """A step that was dispatched: its packed output, still on the device, and the program that reads it."""

    output: jax.Array
    program: Program


class Runner:
    """The device side of the engine. `submit` returns at once; `collect` waits.

    Programs are compiled ahead of time for fixed shapes, so an input that does not fit one is a KeyError
    or a TypeError: a recompilation cannot happen. `prepare` compiles them. A step that comes before its
    program was prepared has all that are missing compiled at once.

    Args:
      buckets, samplers: of the programs that it may compile.
      programs: those that are compiled already, for the shapes of `spec`.
      show_progress: while compiling.
    """

    def __init__(
        self,
        spec: StepSpec,
        params: Mapping[str, jax.Array],
        buckets: Iterable[Bucket],
        samplers: Iterable[Sampler] = DEFAULT_SAMPLERS,
        programs: Mapping[Program, jax.stages.Compiled] | None = None,
        *,
        show_progress: bool = False,
    ):
        self.spec, self.shape = spec, spec.shape
        self.tenancy, self.profile = Tenancy(), Profile()
        self._lock = threading.RLock()  # of the state: `prepare` may be called beside a run
        self._params: tuple[jax.Array, ...] = tuple(params[name] for name in abstract_params(spec.config))
        self.buckets = tuple(buckets)
        self._programs: dict[Program, jax.stages.Compiled] = dict(programs or {})
        # None until programs are compiled: on a GPU that takes memory, too.
        self._state: EngineState | None = None
        self._half_replaced: str | None = None  # the parameter at which an update was cut off
        self._extra: ExtraState = {}  # of features whose programs are compiled
        self._failed = False  # a step on the device, whose state is not to be trusted
        self._set_row: dict[str, jax.stages.Compiled] = {}
        self._copy: jax.stages.Compiled | None = None  # these two: until `prepare_sharing`
        self._put_tables: jax.stages.Compiled | None = None
        self._read: jax.stages.Compiled | None = None  # until the first `read_pages`
        self._no_copies = np.array([(0, self.shape.num_pages)] * COPIES, np.int32)
        self._no_tables = np.zeros((TABLES, 1 + self.shape.pages_per_seq), np.int32)
        self._no_tables[:, 0] = self.shape.num_rows
        self._no_masks: dict[int, jax.Array] = {}  # by the number of draws: all tokens may be drawn
        self.samplers = with_unions(samplers)
        self._show_progress = show_progress
        self._compiled_before = compile_counter().count  # by others, and before a run

    def declare(self, samplers: Iterable[Sampler] = (), buckets: Iterable[Bucket] = ()) -> None:
        """Let steps draw in these ways, and in unions of them, and have these buckets, too."""
        self.samplers = with_unions({*self.samplers, *samplers})
        self.buckets = tuple(dict.fromkeys((*self.buckets, *buckets)))

    def prepare(self, programs: Iterable[Program] | None = None, *, in_run: bool = False) -> None:
        """Compile these programs, or all that steps may need, as far as they are missing; then take the
        memory of the state, where it is not there yet, and on a GPU run each new program once.

        In a run, where requests wait for it, `compilations_after_warmup` counts them. It may be called from
        another thread than the run's.
        """
        self.tenancy.check_process()
        wanted = programs_for(self.buckets, self.samplers) if programs is None else programs
        missing = [program for program in dict.fromkeys(wanted) if program not in self._programs]
        if not missing and self._state is not None:
            return
        self.check_open()
        before = compile_counter().count
        with progress_bar("compiling", len(missing), enabled=self._show_progress) as update:
            compiled = self.spec.compile_all(missing, update)
        with self._lock:
            if self._state is None:
                self._state = self._new_state()
            for program in (*self._programs, *compiled):
                self._prepare_features(program)
            self._programs |= compiled  # a step that finds them finds what they need, too
            if self.spec.device.platform != "cpu":
                self.warm_up(missing)
        if not in_run:
            self._compiled_before += compile_counter().count - before

    def _prepare_features(self, program: Program) -> None:
        vocab_size = self.spec.config.vocab_size
        for name in features_of(program.sampler):
            if name not in self._extra:
                self._set_row[name] = self.spec.compile_set_row(name)
                self._extra[name] = self._new_extra(name)
        draws = num_draws(program.bucket, self.shape)
        if program.sampler.processes and draws not in self._no_masks:
            no_mask = np.full((draws, mask.num_words(vocab_size)), ALL_BITS, np.int32)
            self._no_masks[draws] = jax.device_put(no_mask, self.spec.device)

    def prepare_sharing(self, *, in_run: bool = False) -> None:
        """Compile what sequences that share pages take: to copy pages, and to put whole block tables in
        place. What comes before it was prepared has it compiled, too."""
        with self._lock:
            if self._copy is not None and self._put_tables is not None:
                return
            before = compile_counter().count
            self._copy, self._put_tables = self.spec.compile_copy(), self.spec.compile_tables()
            if self.spec.device.platform != "cpu" and self._state is not None:
                self._share_pages(self._state, self._no_tables[:1], self._no_copies[:1])
            if not in_run:
                self._compiled_before += compile_counter().count - before

    @property
    def params(self) -> dict[str, jax.Array]:
        """The parameters by name, on the device; empty after `close`."""
        return dict(zip(abstract_params(self.spec.config), self._params, strict=False))

    def replace_params(self, sources: Mapping[str, weights.Source], label: Label | None = None) -> None:
        """Compute with other weights from the next step on, by the same programs.

        Steps that were submitted end with the old ones first. One parameter is replaced after the other, and
        memory is taken for one at a time. Where that is cut off, what is left is neither of the two: `submit`
        refuses it until all have been replaced by another call.

        Args:
          sources: what each parameter is made of, see `weights.match`.
          label: what the weights are called; without one, by the number of the update.
        """
        loaded = self.tenancy.weights
        with loaded.lock, self._lock:
            self.check_open()
            self._wait_for_steps()
            before = compile_counter().count
            for idx, (name, leaf) in enumerate(abstract_params(self.spec.config).items()):
                with fixed_settings():
                    new = weights.make(sources[name], leaf, self.spec.device)
                self._half_replaced = name
                self._params = (*self._params[:idx], new, *self._params[idx + 1 :])
                self.tenancy.pages_lost()
            loaded.count(label)
            self._half_replaced = None
            self._compiled_before += compile_counter().count - before  # they are no steps

    def check_open(self) -> None:
        """Raise JBatchError after `close`."""
        if not self._params:
            raise JBatchError(CLOSED)

    def check_params(self) -> None:
        """Raise JBatchError where no step can compute with the weights that are there."""
        self.check_open()
        if self._half_replaced is not None:
            raise JBatchError(HALF_REPLACED.format(name=self._half_replaced))

    def _wait_for_steps(self) -> None:
        """Until all steps have ended; how is for `collect` to say."""
        with contextlib.suppress(Exception):
            jax.block_until_ready([leaf for leaf in jax.tree.leaves(self._state) if not leaf.is_deleted()])

    @property
    def num_programs(self) -> int:
        return len(self._programs)

    @property
    def counts_all(self) -> bool:
        """Whether every sequence's token counts are needed: a user's function may look at them."""
        return self.spec.logits_fn is not None

    @property
    def compilations_after_warmup(self) -> int:
        """Programs that this process compiled while requests ran.

        0, but for others who use JAX, for what `prepare` made in the middle of a run, and for steps that came
        before their program was prepared.
        """
        return compile_counter().count - self._compiled_before

    def submit(self, step: StepInput) -> Handle:
        """Dispatch a step; what comes back is for `collect`.

        Where a step raised, here or in `collect`, all rows and pages may be gone: a step takes the state, and
        an interrupt or a failing device may keep it from being given back. The next one begins with a new
        state then, so whatever ran must begin anew, too.

        Raises JBatchError after `close`, for weights that are half replaced or were deleted, and for pages
        that do not exist.
        """
        with self._lock:
            self.check_params()
            check_pages(step, self.shape)
            try:
                with self.profile.step("jbatch step"):
                    return self._dispatch(step)
            except BaseException as error:
                if self._is_lost():  # it may hang on in the frames that were left: there is no room for two
                    self.tenancy.pages_lost()
                    traceback.clear_frames(error.__traceback__)
                deleted = [name for name, leaf in self.params.items() if leaf.is_deleted()]
                if deleted:
                    raise JBatchError(DELETED.format(name=deleted[0])) from error
                raise

    def _dispatch(self, step: StepInput) -> Handle:
        program = program_for(step.bucket, step.sampler)
        compiled = self._programs.get(program) or self._compile_late(program)
        state = self._whole_state()
        state = self._share_pages(state, step.tables, step.page_copies)
        for row_data in step.row_data:
            self._set_row_data(row_data)
        extra = {name: self._extra[name] for name in features_of(program.sampler)}
        token_mask: Any = None
        if program.sampler.processes:
            no_mask = self._no_masks[num_draws(step.bucket, self.shape)]
            token_mask = no_mask if step.token_mask is None else step.token_mask
        arguments = (self._params, state, extra, step.packed, token_mask)
        self._state, extra, output = call(compiled, *arguments)
        self._extra |= extra
        output.copy_to_host_async()
        return Handle(output, program)

    def _compile_late(self, program: Program) -> jax.stages.Compiled:
        """A program that no one has prepared, and with it all that may follow. Raises KeyError for one that
        was never declared."""
        if program in programs_for(self.buckets, self.samplers):
            self.prepare(in_run=True)
        return self._programs[program]

    def is_ready(self, handle: Handle) -> bool:
        """Whether a step has ended, or failed, so that `collect` does not wait."""
        return bool(handle.output.is_ready())  # type: ignore[attr-defined]  # which jax.Array leaves out

    def collect(self, handle: Handle) -> tuple[StepOutput, float]:
        """Wait for a step's output; with it, when the host had it (time.monotonic, seconds)."""
        try:
            packed = np.asarray(handle.output)
        except Exception:  # an interrupt is none: the step goes on
            self._failed = True
            self.tenancy.pages_lost()
            raise
        bucket, sampler = handle.program
        return unpack_output(packed, bucket, self.shape, sampler), time.monotonic()

    def close(self) -> None:
        """Free the device's memory, and end a profile."""
        if self.profile.under_way:
            self.profile.stop()
        for leaf in jax.tree.leaves((self._params, self._state, self._extra, self._no_masks)):
            if not leaf.is_deleted():
                leaf.delete()
        self._state, self._params = None, ()
        self._extra, self._no_masks, self._programs = {}, {}, {}

    def warm_up(self, programs: Iterable[Program] | None = None) -> None:
        """Run each program once on padding, which changes nothing: a GPU loads code at its first call."""
        num_rows, vocab_size = self.shape.num_rows, self.spec.config.vocab_size
        for program in self._programs if programs is None else programs:
            no_row = tuple(
                RowData(name, np.full(row_data_size(name, vocab_size), num_rows, np.int32))
                for name in features_of(program.sampler)
            )
            packed = padding(program.bucket, self.shape, program.sampler)
            self.collect(self.submit(StepInput(*program, packed, no_row)))

    def _set_row_data(self, row_data: RowData) -> None:
        name = row_data.feature
        self._extra[name] = call(self._set_row[name], self._extra[name], row_data.packed)

    def _whole_state(self) -> EngineState:
        """The state; a new one where it was lost."""
        if self._is_lost():
            self._state = None  # first: there is no room for two
            for name in self._extra:
                self._extra[name] = self._new_extra(name)
            self._state = self._new_state()
            self._failed = False
        assert self._state is not None, "only close leaves none"
        return self._state

    def _is_lost(self) -> bool:
        """Whether a step took the state, or that of a feature, and did not give it back."""
        if self._failed or self._state is None or self._state.rows.is_deleted():
            return True
        return any(leaf.is_deleted() for leaf in jax.tree.leaves(self._extra))

    def _new_state(self) -> EngineState:
        state: EngineState = zeros(abstract_state(self.spec.config, self.spec.shape), self.spec.device)
        return state

    def _new_extra(self, name: str) -> Any:
        module = features_of(Sampler.EXTENDED)[name]
        abstract = module.abstract(self.shape.num_rows, self.spec.config.vocab_size)
        return zeros(abstract, self.spec.device)

    def _share_pages(
        self, state: EngineState, tables: np.ndarray | None, copies: np.ndarray | None
    ) -> EngineState:
        """Put block tables in place, and copy pages."""
        if tables is None and copies is None:
            return state
        if self._copy is None or self._put_tables is None:
            self.prepare_sharing(in_run=True)
        if tables is not None:
            state = self._dispatch_parts(state, self._put_tables, tables, self._no_tables)
        if copies is not None:
            state = self._dispatch_parts(state, self._copy, copies, self._no_copies)
        return state

    def read_pages(self, page_ids: list[int], num_tokens: int, *, in_run: bool) -> KV:
        """The keys (0) and values (1) of the first `num_tokens` tokens that these pages hold, in their order.

        Steps that were submitted come first. The first call compiles a program; `compilations_after_warmup`
        counts it in a run.
        """
        with self._lock:
            self.check_open()
            if self._read is None:
                before = compile_counter().count
                self._read = self.spec.compile_read()
                if not in_run:
                    self._compiled_before += compile_counter().count - before
            state, parts = self._whole_state(), []
            for begin in range(0, len(page_ids), READS):
                part = np.zeros(READS, np.int32)  # of page 0 where there are no more
                given = page_ids[begin : begin + READS]
                part[: len(given)] = given
                parts.append(np.asarray(call(self._read, state, part))[:, : len(given)])
        config, page_size = self.spec.config, self.shape.page_size
        sizes = (config.num_layers, 0, 2, config.num_kv_heads, page_size, config.head_dim)
        pages = np.concatenate([np.zeros(sizes, state.kv_pages[0].dtype), *parts], axis=1)
        tokens = pages.transpose(0, 2, 1, 4, 3, 5)
        return tokens.reshape(config.num_layers, 2, -1, config.num_kv_heads, config.head_dim)[
            :, :, :num_tokens
        ]

    def _dispatch_parts(
        self, state: EngineState, compiled: Any, entries: np.ndarray, nowhere: np.ndarray
    ) -> EngineState:
        """Change the state by all entries, as many at a time as `nowhere` has, which is dropped."""
        for begin in range(0, len(entries), len(nowhere)):
            given, part = entries[begin : begin + len(nowhere)], nowhere.copy()
            part[: len(given)] = given
            state = self._state = call(compiled, state, part)
        return state
