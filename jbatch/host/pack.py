"""A step plan as what goes to the device."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from jbatch.host.plan import Chunk, StepPlan
from jbatch.sampler import Sampler
from jbatch.seam.bucket import align
from jbatch.seam.row_data import RowData
from jbatch.seam.rows import row_columns
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepFields, StepInput, pack_tables, padding, unpack


def pack(
    plan: StepPlan,
    shape: StateShape,
    sampler: Sampler | None = None,
    row_data: tuple[RowData, ...] = (),
    token_mask: Int[np.ndarray, "draws words"] | None = None,
) -> StepInput:
    """The plan as arrays, for the program of `sampler`, or of the plan's own."""
    sampler = plan.sampler if sampler is None else sampler
    packed = padding(plan.bucket, shape, sampler).copy()
    fields = unpack(packed, plan.bucket, shape, sampler)
    fields.slot_rows[: len(plan.rows)] = plan.rows
    if plan.frozen:
        fields.frozen[: len(plan.frozen)] = plan.frozen
    if plan.table_updates:
        fields.table_updates[: len(plan.table_updates)] = plan.table_updates
    if plan.chunks:
        _pack_chunks(plan.chunks, fields)
    copies = np.array(plan.page_copies, np.int32) if plan.page_copies else None
    tables = pack_tables(plan.tables, shape) if plan.tables else None
    return StepInput(plan.bucket, sampler, packed, row_data, copies, tables, token_mask)


def _pack_chunks(chunks: tuple[Chunk, ...], fields: StepFields[np.ndarray]) -> None:
    begin = draw_idx = 0
    for idx, chunk in enumerate(chunks):
        length = len(chunk.token_ids)
        fields.tokens[begin : begin + length] = np.fromiter(chunk.token_ids, np.int32, length)
        fields.chunk_rows[idx] = chunk.row
        fields.q_starts[idx], fields.q_lens[idx] = begin, length
        fields.kv_lens[idx] = chunk.end
        if fields.targets.size:
            fields.targets[begin : begin + len(chunk.targets)] = chunk.targets
        for draw in chunk.draws:
            fields.draw_places[draw_idx] = begin + draw.offset
            fields.draw_rows[draw_idx] = draw.row
            if draw.setup is not None:
                fields.has_setup[draw_idx] = 1
                fields.setups[draw_idx] = row_columns(draw.setup)
            draw_idx += 1
        begin += align(length)
