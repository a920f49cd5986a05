"""The draws that a step makes, from whose logits and for which rows: jbatch/device/draws.py in PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bench.compare.torch_engine.spans import Part
from bench.compare.torch_engine.state import State
from jbatch.seam.rows import COLUMNS
from jbatch.seam.step_input import StepFields


class Draws(NamedTuple):
    """The tokens to draw."""

    places: Int[Tensor, " draws"]  # in the packed axis
    columns: Int[Tensor, "draws row_width"]  # the rows, as they are before
    lengths: Int[Tensor, " draws"]  # tokens that their sequences have in the cache
    live: Bool[Tensor, " draws"]  # the others draw nothing
    written: Int[Tensor, " draws"]  # the rows, or the one that is never read where a row stays as it is


def draws_of(
    state: State, fields: StepFields[Tensor], slots: Int[Tensor, "slots row_width"], parts: list[Part]
) -> Draws:
    """Those of the slots, then those of the chunks. `slots` is of `with_frozen`."""
    draws = []
    if len(slots):
        draws.append(_slot_draws(fields, slots, parts[0]))
    if len(fields.tokens):
        draws.append(_chunk_draws(state, fields, parts[-1]))
    return draws[0] if len(draws) == 1 else Draws(*map(torch.cat, zip(*draws, strict=True)))


def _slot_draws(fields: StepFields[Tensor], slots: Int[Tensor, "slots row_width"], part: Part) -> Draws:
    return Draws(
        places=part.owners,  # a token of each slot
        columns=slots,
        lengths=part.kv_lens,
        live=part.live,
        written=fields.slot_rows.long(),
    )


def _chunk_draws(state: State, fields: StepFields[Tensor], part: Part) -> Draws:
    """A row begins with what came with the draw, or goes on with what it is."""
    places, rows = fields.draw_places.long(), fields.draw_rows.long()
    columns = torch.where(fields.has_setup[:, None] > 0, fields.setups, state.rows[rows])
    live = (rows < state.num_rows) & (columns[:, COLUMNS["finished"]] == 0)
    return Draws(
        places=len(fields.slot_rows) + places,
        columns=columns,
        lengths=part.positions[places].int() + 1,
        live=live,
        written=torch.where(live, rows, state.num_rows),
    )
