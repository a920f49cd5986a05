"""What a step is asked to compute, in numbers, worked out from its input alone.

A device would know the lengths of its rows; so does this. It draws no tokens, but it knows when a sequence
ends: by its budget, or earlier, at a length that is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jbatch.seam.bucket import Bucket
from jbatch.seam.fields import Ints
from jbatch.seam.rows import COLUMNS
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepFields, StepInput, unpack
from jbatch.seam.step_output import Status, StepOutput, num_draws


class Load(NamedTuple):
    """What a step computes, beyond its shape."""

    bucket: Bucket
    slots: int  # sequences that decode
    keys: int  # tokens in the cache that they attend to, in all
    longest: int  # of the one that has most
    tokens: int  # of prompts
    pairs: int  # of a prompt's token and one that it attends to
    chunks: int  # prompts that these tokens are of


class RowLoads:
    """The rows of a device that computes nothing.

    Args:
      output_lens: tokens after which a request ends by itself, by its `request_idx`; those that it lacks end
        with their budget.
    """

    def __init__(self, shape: StateShape, output_lens: Mapping[int, int] | None = None):
        self._shape = shape
        self._output_lens = output_lens or {}
        self._lengths = np.zeros(shape.num_rows + 1, np.int64)  # tokens in the cache; the last row is none
        self._left = np.zeros(shape.num_rows + 1, np.int64)  # tokens until it ends
        self._by_budget = np.ones(shape.num_rows + 1, bool)  # whether that is its budget

    def take(self, step: StepInput) -> tuple[Load, StepOutput]:
        """A step's load and its output, whose tokens are all 0."""
        bucket = step.bucket
        fields = unpack(step.packed, bucket, self._shape, step.sampler)
        draws = num_draws(bucket, self._shape)
        output = StepOutput(
            np.zeros((draws, bucket.steps), np.int32), np.zeros(draws, np.int32), np.zeros(draws, np.int32)
        )
        slots, keys, longest = self._decode(fields, bucket, output)
        tokens, pairs, chunks = _chunks(fields)
        if bucket.tokens:
            self._draw_from_chunks(fields, bucket, output)
        return Load(bucket, slots, keys, longest, tokens, pairs, chunks), output

    def _decode(
        self, fields: StepFields[np.ndarray], bucket: Bucket, output: StepOutput
    ) -> tuple[int, int, int]:
        rows = fields.slot_rows
        self._left[rows[fields.frozen > 0]] = 0
        slots = keys = longest = 0
        for _ in range(bucket.steps):
            live = self._left[rows] > 0
            live &= rows < self._shape.num_rows
            if not live.any():
                break
            active = rows[live]
            self._lengths[active] += 1
            lengths = self._lengths[active]
            slots, keys, longest = max(slots, active.size), keys + int(lengths.sum()), int(lengths.max())
            self._draw(active, np.flatnonzero(live), output)
        return slots, keys, longest

    def _draw_from_chunks(self, fields: StepFields[np.ndarray], bucket: Bucket, output: StepOutput) -> None:
        drawn = np.flatnonzero(fields.draw_rows < self._shape.num_rows)
        rows = fields.draw_rows[drawn]
        places = fields.draw_places[drawn]
        chunks = np.searchsorted(fields.q_starts, places, side="right") - 1
        positions = fields.kv_lens - fields.q_lens - fields.q_starts
        self._lengths[rows] = positions[chunks] + places + 1
        begun = fields.has_setup[drawn] > 0
        self._begin(rows[begun], fields.setups[drawn[begun]])
        self._draw(rows, bucket.slots + drawn, output)

    def _begin(self, rows: Int[Ints, " n"], setups: Int[Ints, "n row_width"]) -> None:
        """Rows begin with what came for them."""
        self._left[rows] = setups[:, COLUMNS["budget"]]
        self._by_budget[rows] = True
        if not self._output_lens:
            return
        for row, setup in zip(rows.tolist(), setups.tolist(), strict=True):
            wanted = self._output_lens.get(setup[COLUMNS["request_idx"]])
            left = 0 if wanted is None else wanted - self._lengths[row] + setup[COLUMNS["prompt_len"]]
            if wanted is not None and left < self._left[row]:
                self._left[row], self._by_budget[row] = max(1, left), False

    def _draw(self, rows: Int[Ints, " n"], draws: Int[np.ndarray, " n"], output: StepOutput) -> None:
        live: Bool[np.ndarray, " n"] = self._left[rows] > 0
        rows, draws = rows[live], draws[live]
        output.num_tokens[draws] += 1
        self._left[rows] -= 1
        ended = np.where(self._by_budget[rows], Status.OUT_OF_BUDGET, Status.STOPPED)
        output.status[draws] = np.where(self._left[rows] > 0, Status.RUNNING, ended)


def _chunks(fields: StepFields[np.ndarray]) -> tuple[int, int, int]:
    """Tokens of prompts, pairs of one and a token that it attends to, and prompts."""
    lengths = fields.q_lens.astype(np.int64)
    first = fields.kv_lens - lengths + 1  # tokens that the first of each chunk attends to
    pairs = lengths * (first + fields.kv_lens) // 2
    return int(lengths.sum()), int(pairs.sum()), int(np.count_nonzero(lengths))
