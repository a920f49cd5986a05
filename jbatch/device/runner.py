"""Runs steps on a device: parameters, state, and one compiled program per bucket and way of drawing."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

import weights
from jbatch.device.compile_counter import compile_counter
from jbatch.device.features import Features
from jbatch.device.page_programs import KV, PagePrograms
from jbatch.device.params import Params
from jbatch.device.process import features_of
from jbatch.device.profile import Profile
from jbatch.device.programs import DEFAULT_SAMPLERS, Program, StepSpec, program_for, programs_for
from jbatch.device.state import EngineState, free, zeros
from jbatch.outputs import Label
from jbatch.progress import progress_bar
from jbatch.sampler import Sampler, with_unions
from jbatch.seam.bucket import Bucket
from jbatch.seam.row_data import RowData, row_data_size
from jbatch.seam.step_input import StepInput, check_pages, padding
from jbatch.seam.step_output import StepOutput, unpack_output
from jbatch.seam.tenancy import Tenancy


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
        self._params, self._pages, self._features = Params(spec, params), PagePrograms(spec), Features(spec)
        self.buckets = tuple(buckets)
        self._programs: dict[Program, jax.stages.Compiled] = dict(programs or {})
        # None until programs are compiled: on a GPU that takes memory, too.
        self._state: EngineState | None = None
        self._failed = False  # a step on the device, whose state is not to be trusted
        self.samplers = with_unions(samplers)
        self._show_progress = show_progress
        self._compiled_before = compile_counter().count - compile_counter().outside  # by others

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
        with compile_counter().compiling(in_run=in_run):
            with progress_bar("compiling", len(missing), enabled=self._show_progress) as update:
                compiled = self.spec.compile_all(missing, update)
            with self._lock:
                if self._state is None:
                    self._state = self._new_state()
                for program in (*self._programs, *compiled):
                    self._features.prepare(program)
                self._programs |= compiled  # a step that finds them finds what they need, too
                if self.spec.device.platform != "cpu":
                    self.warm_up(missing)

    def prepare_sharing(self, *, in_run: bool = False) -> None:
        """Compile what sequences that share pages take: to copy pages, and to put whole block tables in
        place. What comes before it was prepared has it compiled, too."""
        with self._lock:
            if self._pages.prepared:
                return
            with compile_counter().compiling(in_run=in_run):
                self._pages.prepare()
                if self.spec.device.platform != "cpu" and self._state is not None:
                    self._pages.warm_up(self._state, self._keep)

    @property
    def params(self) -> dict[str, jax.Array]:
        """The parameters by name, on the device; empty after `close`."""
        with compile_counter().compiling(in_run=False):  # what lies there in another form
            return self._params.by_name()

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
            with compile_counter().compiling(in_run=False):  # no steps
                self._params.replace(sources, self.tenancy.pages_lost, lambda: loaded.count(label))

    def check_open(self) -> None:
        """Raise JBatchError after `close`."""
        self.tenancy.check_open()

    def check_params(self) -> None:
        """Raise JBatchError where no step can compute with the weights that are there."""
        self.check_open()
        self._params.check()

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
        return compile_counter().count - compile_counter().outside - self._compiled_before

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
                self._params.check_not_deleted(error)
                raise

    def _dispatch(self, step: StepInput) -> Handle:
        program = program_for(step.bucket, step.sampler)
        compiled = self._programs.get(program) or self._compile_late(program)
        state = self._whole_state()
        state = self._share_pages(state, step.tables, step.page_copies)
        for row_data in step.row_data:
            self._features.put_row(row_data)
        extra = self._features.of(program.sampler)
        token_mask = self._features.token_mask(step, program.sampler)
        arguments = (self._params.leaves, state, extra, step.packed, token_mask)
        self._state, extra, output = self.spec.call(compiled, *arguments)
        self._features.state |= extra
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
        self.tenancy.closed = True
        if self.profile.under_way:
            self.profile.stop()
        self._params.free()
        self._features.free()
        free(self._state)
        self._state, self._programs = None, {}

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

    def _whole_state(self) -> EngineState:
        """The state; a new one where it was lost."""
        if self._is_lost():
            self._state = None  # first: there is no room for two
            self._features.renew()
            self._state = self._new_state()
            self._failed = False
        assert self._state is not None, "only close leaves none"
        return self._state

    def _is_lost(self) -> bool:
        """Whether a step took the state, or that of a feature, and did not give it back."""
        if self._failed or self._state is None or self._state.rows.is_deleted():
            return True
        return self._features.lost

    def _new_state(self) -> EngineState:
        state: EngineState = zeros(self.spec.state)
        return state

    def _share_pages(
        self, state: EngineState, tables: np.ndarray | None, copies: np.ndarray | None
    ) -> EngineState:
        """Put block tables in place, and copy pages."""
        if tables is None and copies is None:
            return state
        if not self._pages.prepared:
            self.prepare_sharing(in_run=True)
        return self._pages.change(state, tables, copies, self._keep)

    def _keep(self, state: EngineState) -> None:
        self._state = state

    def read_pages(self, page_ids: list[int], num_tokens: int, *, in_run: bool) -> KV:
        """The keys (0) and values (1) of the first `num_tokens` tokens that these pages hold, in their order.

        Steps that were submitted come first. The first call compiles a program; `compilations_after_warmup`
        counts it in a run.
        """
        with self._lock:
            self.check_open()
            if not self._pages.can_read:
                with compile_counter().compiling(in_run=in_run):
                    self._pages.prepare_read()
            return self._pages.read(self._whole_state(), page_ids, num_tokens)
