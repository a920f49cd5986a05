"""The seam between host and device: what a step does (StepPlan), and its one packed array (StepInput).

One int32 array goes up per step and one comes down, since each argument of its own is a transfer and a
bubble. Their layouts are written here and nowhere else; `unpack` serves NumPy and JAX arrays alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from jbatch.config import TOKEN_ALIGN
from jbatch.errors import JBatchError
from jbatch.request import Sequence
from jbatch.sampling_params import MAX_STOP_IDS, Sampler

TOKENS_PER_STEP = 1  # K: tokens a sequence may get per decode step


class Bucket(NamedTuple):
    """The shape of a compiled step."""

    kind: Literal["prefill", "decode"]
    slots: int
    tokens: int


MAX_PREFILL_SLOTS = 64  # sequences of one prefill step: bounds its [slots, vocab] logits


def decode_bucket(slots: int) -> Bucket:
    """One token per slot."""
    return Bucket("decode", slots, slots)


def prefill_bucket(tokens: int, max_num_seqs: int) -> Bucket:
    """A packed token axis, for as many sequences as it holds at 16 tokens each."""
    return Bucket("prefill", max(1, min(max_num_seqs, MAX_PREFILL_SLOTS, tokens // 16)), tokens)


class RowSetup(NamedTuple):
    """A row of device state, in its column order: what the device knows of a running sequence.

    Floats travel as their int32 bits.
    """

    last_token: Any = 0
    length: Any = 0  # tokens in the cache
    budget: Any = 0  # tokens still to generate
    min_left: Any = 0  # tokens to generate before a stop id may come
    finished: Any = 0
    seed: Any = 0  # uint32
    sample_idx: Any = 0  # of the request's n samples
    temperature: Any = 0.0
    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    stop_ids: Any = ()  # padded with -1


NUM_SCALARS = len(RowSetup._fields) - 1
ROW_WIDTH = NUM_SCALARS + MAX_STOP_IDS
FLOAT_COLUMNS = ("temperature", "top_p", "min_p")
MIN_TOP_P = float(np.finfo(np.float32).tiny)  # a device takes a smaller one for 0, which keeps no token


class Chunk(NamedTuple):
    """A run of one sequence's tokens to prefill, from position `start`."""

    token_ids: tuple[int, ...]
    start: int
    num_recomputed: int  # of these, positions that were cached before a preemption
    setup: RowSetup | None  # on the last chunk, which samples: the row begins to decode


class TableUpdate(NamedTuple):
    """block_tables[row, page_idx] = page_id."""

    row: int
    page_idx: int
    page_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: slot i computes sequence `seq_ids[i]`, whose device state is row `rows[i]`."""

    step_idx: int
    bucket: Bucket
    seq_ids: tuple[int, ...]
    rows: tuple[int, ...]
    table_updates: tuple[TableUpdate, ...]
    chunks: tuple[Chunk, ...] = ()  # prefill: one per sequence
    frozen: tuple[bool, ...] = ()  # decode: ended, but held until its batch has ended
    sampler: Sampler = Sampler.GREEDY
    preempted: tuple[int, ...] = ()  # sequences whose pages this step took


class StepInput(NamedTuple):
    """What goes to the device: the program to run and its packed input."""

    bucket: Bucket
    sampler: Sampler
    packed: np.ndarray  # int32, 1-d


class StepOutput(NamedTuple):
    """What comes back, per slot."""

    tokens: np.ndarray  # int32 [slots, K]
    num_tokens: np.ndarray  # int32 [slots]: how many of them are valid
    status: np.ndarray  # int32 [slots]: a Status


class Status:
    """Whether a row goes on after a step, and if not, why."""

    RUNNING, STOPPED, OUT_OF_BUDGET, NON_FINITE = range(4)


class PrefillInput(NamedTuple):
    """Padding: tokens 0, rows `num_rows`, starts `tokens`, lengths 0."""

    tokens: Any  # [tokens]
    rows: Any  # [slots]
    q_starts: Any  # [slots]
    q_lens: Any  # [slots]
    kv_lens: Any  # [slots], this chunk included
    samples: Any  # [slots]: 1 where `setup` holds and a token is drawn
    setup: Any  # [slots, ROW_WIDTH]
    table_updates: Any  # [tokens / page_size + slots, 3]


class DecodeInput(NamedTuple):
    """Padding: rows `num_rows`."""

    rows: Any  # [slots]
    frozen: Any  # [slots]
    table_updates: Any  # [slots, 3]


class _Field(NamedTuple):
    begin: int
    end: int
    shape: tuple[int, ...]


@functools.cache
def _layout(bucket: Bucket, page_size: int) -> tuple[_Field, ...]:
    _, slots, tokens = bucket
    shapes: tuple[tuple[int, ...], ...] = ((slots,), (slots,), (slots, 3))
    if bucket.kind == "prefill":
        num_updates = tokens // page_size + slots  # each chunk fills whole pages, and begins one
        shapes = ((tokens,), *[(slots,)] * 5, (slots, ROW_WIDTH), (num_updates, 3))
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    return tuple(_Field(*field) for field in zip([0, *ends[:-1]], ends, shapes, strict=True))


def input_size(bucket: Bucket, page_size: int) -> int:
    """Elements of a step's packed input."""
    return _layout(bucket, page_size)[-1].end


def unpack(packed: Any, bucket: Bucket, page_size: int) -> PrefillInput | DecodeInput:
    """Views of a packed input (NumPy), or slices of it (JAX)."""
    fields = (packed[f.begin : f.end].reshape(f.shape) for f in _layout(bucket, page_size))
    return PrefillInput(*fields) if bucket.kind == "prefill" else DecodeInput(*fields)


def unpack_output(packed: np.ndarray) -> StepOutput:
    """From int32 [slots, K + 2]: tokens, number of them, status."""
    return StepOutput(packed[:, :-2], packed[:, -2], packed[:, -1])


@functools.cache
def padding(bucket: Bucket, num_rows: int, page_size: int) -> np.ndarray:
    """A packed input of nothing but padding: shared, so copy it before you write."""
    packed = np.zeros(input_size(bucket, page_size), np.int32)
    fields = unpack(packed, bucket, page_size)
    fields.rows[:] = num_rows
    fields.table_updates[:, 0] = num_rows
    if isinstance(fields, PrefillInput):
        fields.q_starts[:] = bucket.tokens
    return packed


def pack(plan: StepPlan, num_rows: int, page_size: int) -> StepInput:
    """The plan as one array."""
    packed = padding(plan.bucket, num_rows, page_size).copy()
    fields = unpack(packed, plan.bucket, page_size)
    fields.rows[: len(plan.rows)] = plan.rows
    if plan.table_updates:
        fields.table_updates[: len(plan.table_updates)] = plan.table_updates
    if isinstance(fields, PrefillInput):
        _pack_chunks(plan.chunks, fields)
    else:
        fields.frozen[: len(plan.frozen)] = plan.frozen
    return StepInput(plan.bucket, plan.sampler, packed)


def check_table_updates(
    step: StepInput, *, num_rows: int, num_pages: int, pages_per_seq: int, page_size: int
) -> None:
    """Raise JBatchError for a page id or a place in a block table that does not exist. On the device it would
    be clamped or dropped, and the step would read another sequence's cache."""
    if step.packed.shape != (input_size(step.bucket, page_size),):
        return  # the program refuses it
    updates = unpack(step.packed, step.bucket, page_size).table_updates
    updates = updates[updates[:, 0] != num_rows]
    bad = (updates < (0, 0, 1)) | (updates >= (num_rows, pages_per_seq, num_pages))
    if bad.any():
        update, column = np.argwhere(bad)[0]
        name = ("row", "index", "page")[column]
        end = (num_rows, pages_per_seq, num_pages)[column]
        value = updates[update, column]
        raise JBatchError(f"table update with {name}={value}: must be from {int(column == 2)} to {end - 1}")


def _pack_chunks(chunks: tuple[Chunk, ...], fields: PrefillInput) -> None:
    begin = 0
    for slot, chunk in enumerate(chunks):
        length = len(chunk.token_ids)
        fields.tokens[begin : begin + length] = chunk.token_ids
        fields.q_starts[slot], fields.q_lens[slot] = begin, length
        fields.kv_lens[slot] = chunk.start + length
        if chunk.setup is not None:
            fields.samples[slot] = 1
            fields.setup[slot] = row_columns(chunk.setup)
        begin += align(length)


def align(num_tokens: int) -> int:
    """Places that a chunk takes in the packed token axis."""
    return -(-num_tokens // TOKEN_ALIGN) * TOKEN_ALIGN


def row_setup(sequence: Sequence) -> RowSetup:
    """The device's view of a sequence whose known tokens have all been prefilled, before it samples."""
    params, num_generated = sequence.request.params, sequence.num_known - sequence.num_prompt
    return RowSetup(
        length=sequence.num_known,
        budget=sequence.request.max_tokens - num_generated,
        min_left=max(0, params.min_tokens - num_generated),
        seed=sequence.request.seed,
        sample_idx=sequence.request.sample_idx,
        temperature=0.0 if params.greedy else params.temperature,
        top_k=max(0, params.top_k),
        top_p=max(params.top_p, MIN_TOP_P),
        min_p=params.min_p,
        stop_ids=sequence.request.stop_ids,
    )


def row_columns(setup: RowSetup) -> Int[np.ndarray, " row_width"]:
    """A row of device state as int32."""
    columns = np.full(ROW_WIDTH, -1, np.int32)
    for idx, name in enumerate(RowSetup._fields[:NUM_SCALARS]):
        value = getattr(setup, name)
        if name in FLOAT_COLUMNS:
            columns[idx] = np.float32(value).view(np.int32)
        else:
            columns[idx] = np.uint32(value).view(np.int32)
    columns[NUM_SCALARS : NUM_SCALARS + len(setup.stop_ids)] = setup.stop_ids
    return columns
