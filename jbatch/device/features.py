"""What programs take beside rows and cache: the state of sampling features, and masks of tokens."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jbatch.device.process import ExtraState, features_of, mask
from jbatch.device.programs import Program, StepSpec
from jbatch.device.state import free, zeros
from jbatch.sampler import Sampler
from jbatch.seam.row_data import RowData
from jbatch.seam.step_input import StepInput
from jbatch.seam.step_output import num_draws

ALL_BITS = -1  # of a mask of tokens


class Features:
    """There once a program that needs it has been prepared."""

    def __init__(self, spec: StepSpec):
        self._spec = spec
        self.state: ExtraState = {}
        self._set_row: dict[str, jax.stages.Compiled] = {}
        self._no_masks: dict[int, jax.Array] = {}  # by the number of draws: all tokens may be drawn

    def prepare(self, program: Program) -> None:
        """Compile, and take memory for, what a program needs beside its rows."""
        for name in features_of(program.sampler):
            if name not in self.state:
                self._set_row[name] = self._spec.compile_set_row(name)
                self.state[name] = self._new(name)
        draws = num_draws(program.bucket, self._spec.shape)
        if program.sampler.processes and draws not in self._no_masks:
            no_mask = np.full((draws, mask.num_words(self._spec.config.vocab_size)), ALL_BITS, np.int32)
            self._no_masks[draws] = jax.device_put(no_mask, self._spec.everywhere)

    def put_row(self, row_data: RowData) -> None:
        """Put a row's data of one feature in place."""
        name = row_data.feature
        self.state[name] = self._spec.call(self._set_row[name], self.state[name], row_data.packed)

    def of(self, sampler: Sampler) -> ExtraState:
        """What a program takes, and gives back."""
        return {name: self.state[name] for name in features_of(sampler)}

    def token_mask(self, step: StepInput, sampler: Sampler) -> Any:
        """The mask that comes with a step, or one that allows all; None where a program of `sampler` takes
        none."""
        if not sampler.processes:
            return None
        no_mask = self._no_masks[num_draws(step.bucket, self._spec.shape)]
        return no_mask if step.token_mask is None else step.token_mask

    def renew(self) -> None:
        """Begin with new states: the old ones are lost."""
        for name in self.state:
            self.state[name] = self._new(name)

    @property
    def lost(self) -> bool:
        """Whether a program took a state and did not give it back."""
        return any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state))

    def free(self) -> None:
        """Free their memory."""
        free((self.state, self._no_masks))
        self.state, self._no_masks = {}, {}

    def _new(self, name: str) -> Any:
        return zeros(self._spec.feature_state(name))
