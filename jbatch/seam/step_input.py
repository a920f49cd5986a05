"""What goes to the device for a step: one packed int32 array, since each argument of its own is a transfer
and a bubble. Its layout is written here and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from jbatch.errors import JBatchError
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, room_of
from jbatch.seam.fields import A, Field, Ints, fields_of, split
from jbatch.seam.row_data import RowData
from jbatch.seam.rows import ROW_WIDTH
from jbatch.seam.shape import StateShape

T = TypeVar("T")


class StepInput(NamedTuple):
    """A step: the program to run, its packed input, and what is dispatched before it."""

    bucket: Bucket
    sampler: Sampler
    packed: Int[Ints, " size"]
    row_data: tuple[RowData, ...] = ()  # to put in place before the step
    page_copies: Int[Ints, "num_copies 2"] | None = None  # (from, to), done before the step
    tables: Int[Ints, "num_tables row_and_pages"] | None = None  # see pack_tables; in place before the step
    token_mask: Int[Ints, "draws words"] | None = None  # bits of tokens that may be drawn; None: all


class StepFields(NamedTuple, Generic[T]):
    """The parts of a packed input. A step computes spans: slots of one token each, then chunks of prompts.
    It makes draws: one for each slot, in the slots' order, then those of the chunks.

    Padding: rows `num_rows`, starts behind the axis, targets -1, the rest 0.
    """

    slot_rows: T  # [slots]
    frozen: T  # [slots]: 1 where the sequence has ended, but is held until its batch has ended
    tokens: T  # [tokens]: of the chunks, end to end, each at a multiple of TOKEN_ALIGN
    chunk_rows: T  # [chunks]
    q_starts: T  # [chunks]: where each begins among the tokens
    q_lens: T  # [chunks]
    kv_lens: T  # [chunks]: of the sequence, this chunk included
    draw_places: T  # [chunk_draws]: whose logits, among the tokens
    draw_rows: T  # [chunk_draws]: whose row is advanced
    has_setup: T  # [chunk_draws]: 1 where the row begins with `setups`, 0 where it is on the device
    setups: T  # [chunk_draws, ROW_WIDTH]
    table_updates: T  # [table_updates, 3]: row, index, page
    targets: T  # [tokens], or [0] where no log-probabilities are reported: the token to score at each


@functools.cache
def _layout(bucket: Bucket, shape: StateShape, reports: bool) -> tuple[Field, ...]:
    slots, tokens, room = (bucket.slots,), (bucket.tokens,), room_of(bucket, shape)
    chunks, draws = (room.chunks,), (room.chunk_draws,)
    return fields_of(
        (
            *(slots, slots),
            tokens,
            *(chunks, chunks, chunks, chunks),
            *(draws, draws, draws, (room.chunk_draws, ROW_WIDTH)),
            (room.table_updates, 3),
            tokens if reports else (0,),
        )
    )


def input_size(bucket: Bucket, shape: StateShape, sampler: Sampler) -> int:
    """Elements of a step's packed input."""
    return _layout(bucket, shape, sampler.reports)[-1].end


def unpack(packed: A, bucket: Bucket, shape: StateShape, sampler: Sampler) -> StepFields[A]:
    """Views of a packed input (NumPy), or slices of it (JAX)."""
    return StepFields(*split(packed, _layout(bucket, shape, sampler.reports)))


def padding(bucket: Bucket, shape: StateShape, sampler: Sampler) -> Int[Ints, " size"]:
    """A packed input of nothing but padding: shared, so copy it before you write."""
    return _padding(bucket, shape, sampler.reports)


@functools.cache
def _padding(bucket: Bucket, shape: StateShape, reports: bool) -> Int[Ints, " size"]:
    layout = _layout(bucket, shape, reports)
    packed = np.zeros(layout[-1].end, np.int32)
    fields = StepFields(*split(packed, layout))
    for rows in (fields.slot_rows, fields.chunk_rows, fields.draw_rows, fields.table_updates[:, 0]):
        rows[:] = shape.num_rows
    fields.q_starts[:] = bucket.tokens
    fields.targets[:] = -1
    return packed


def pack_tables(
    tables: Iterable[tuple[int, tuple[int, ...]]], shape: StateShape
) -> Int[Ints, "num_tables row_and_pages"]:
    """Whole block tables: each a row and its pages, from the first on; the null page behind them."""
    tables = tuple(tables)
    packed = np.zeros((len(tables), 1 + shape.pages_per_seq), np.int32)
    for idx, (row, page_ids) in enumerate(tables):
        packed[idx, 0] = row
        packed[idx, 1 : 1 + len(page_ids)] = page_ids
    return packed


def check_pages(step: StepInput, shape: StateShape) -> None:
    """Raise JBatchError for a page, or a place in a block table, that does not exist.

    On the device it would be clamped or dropped, and the step would read another sequence's cache.
    """
    if step.packed.shape != (input_size(step.bucket, shape, step.sampler),):
        return  # the program refuses it
    updates = unpack(step.packed, step.bucket, shape, step.sampler).table_updates
    updates = updates[updates[:, 0] != shape.num_rows]
    ends = shape.num_rows, shape.pages_per_seq, shape.num_pages
    _check_below("table update", ("row", "index", "page"), updates, (0, 0, 1), ends)
    if step.tables is not None:
        _check_tables(step.tables, shape)
    if step.page_copies is not None:
        _check_below("page copy", ("from", "to"), step.page_copies, (1, 1), (shape.num_pages,) * 2)
        pages, counts = np.unique(step.page_copies[:, 1], return_counts=True)
        twice = np.union1d(pages[counts > 1], np.intersect1d(pages, step.page_copies[:, 0]))
        if twice.size:  # they would depend on how many copies one dispatch does
            raise JBatchError(f"page copy with to={twice[0]}: it is copied, or written, by another one")


def _check_tables(tables: Int[Ints, "num_tables row_and_pages"], shape: StateShape) -> None:
    _check_below("block table", ("row",), tables[:, :1], (0,), (shape.num_rows,))
    pages = tables[:, 1:].reshape(-1, 1)
    _check_below("block table", ("page",), pages, (0,), (shape.num_pages,))
    rows, counts = np.unique(tables[:, 0], return_counts=True)
    if (counts > 1).any():  # they are put in place all at once
        raise JBatchError(f"block table with row={rows[counts > 1][0]}: it has two in one step")


def _check_below(
    what: str,
    names: tuple[str, ...],
    values: Int[Ints, "num width"],
    lows: tuple[int, ...],
    ends: tuple[int, ...],
) -> None:
    bad = (values < lows) | (values >= ends)
    if bad.any():
        idx, column = np.argwhere(bad)[0]
        low, most = lows[column], ends[column] - 1
        raise JBatchError(f"{what} with {names[column]}={values[idx, column]}: must be from {low} to {most}")
