"""The seam between host and device: what a step does (StepPlan), and its one packed array (StepInput).

One int32 array goes up per step and one comes down, since each argument of its own is a transfer and a
bubble. Their layouts are written here and nowhere else; `unpack` serves NumPy and JAX arrays alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from jbatch.config import TOKEN_ALIGN
from jbatch.errors import JBatchError
from jbatch.host.request import Sequence
from jbatch.sampling_params import (
    MAX_LOGPROB_TOKEN_IDS,
    MAX_LOGPROBS,
    MAX_STOP_IDS,
    Sampler,
)

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
    # From here on, only EXTENDED steps look.
    repetition_penalty: Any = 1.0
    presence_penalty: Any = 0.0
    frequency_penalty: Any = 0.0
    prompt_len: Any = 0
    has_bias: Any = 0  # its RowData holds a bias
    has_bad_words: Any = 0  # its RowData holds bad words
    stop_ids: Any = ()  # padded with -1


NUM_SCALARS = len(RowSetup._fields) - 1
ROW_WIDTH = NUM_SCALARS + MAX_STOP_IDS
FLOAT_COLUMNS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
MIN_TOP_P = float(np.finfo(np.float32).tiny)  # a device takes a smaller one for 0, which keeps no token


class Chunk(NamedTuple):
    """A run of one sequence's tokens to prefill, from position `start`."""

    token_ids: tuple[int, ...]
    start: int
    num_recomputed: int  # of these, positions that were cached before a preemption
    setup: RowSetup | None  # on the last chunk, which samples: the row begins to decode
    prompt_len: int = 0  # of the whole sequence
    targets: tuple[int, ...] = ()  # per token, the next one of the prompt where it is to be scored, or -1


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
    row_data: tuple[np.ndarray, ...] = ()  # to put in place before the step: see jbatch.host.row_data


class Logprobs(NamedTuple):
    """Log-probabilities at some positions, of the model's own logits: what an EXTENDED step tells of them."""

    logprob: Any  # float32 [positions]: of the token there
    rank: Any  # int32 [positions]: 1 + the number of likelier tokens
    top_ids: Any  # int32 [positions, MAX_LOGPROBS], the likeliest first; -1 where the vocabulary is smaller
    top_logprobs: Any  # float32 [positions, MAX_LOGPROBS]
    by_id: Any  # float32 [positions, MAX_LOGPROB_TOKEN_IDS]: of the row's logprob_token_ids; or no column


class StepOutput(NamedTuple):
    """What comes back, per slot, and from EXTENDED prefill steps per place of the packed token axis."""

    tokens: np.ndarray  # int32 [slots, K]
    num_tokens: np.ndarray  # int32 [slots]: how many of them are valid
    status: np.ndarray  # int32 [slots]: a Status
    logprobs: Logprobs | None = None  # [slots]: of the tokens, from EXTENDED steps
    prompt_logprobs: Logprobs | None = None  # [tokens]: of the targets, from EXTENDED prefill steps


class Status:
    """Whether a row goes on after a step, and if not, why."""

    RUNNING, STOPPED, OUT_OF_BUDGET, NON_FINITE, NOTHING_LEFT = range(5)


class PrefillInput(NamedTuple):
    """Padding: tokens 0, rows `num_rows`, starts `tokens`, lengths 0, targets -1. The last two fields are
    EXTENDED steps' alone."""

    tokens: Any  # [tokens]
    rows: Any  # [slots]
    q_starts: Any  # [slots]
    q_lens: Any  # [slots]
    kv_lens: Any  # [slots], this chunk included
    samples: Any  # [slots]: 1 where `setup` holds and a token is drawn
    setup: Any  # [slots, ROW_WIDTH]
    table_updates: Any  # [tokens / page_size + slots, 3]
    prompt_lens: Any = None  # [slots]
    targets: Any = None  # [tokens]


class DecodeInput(NamedTuple):
    """Padding: rows `num_rows`."""

    rows: Any  # [slots]
    frozen: Any  # [slots]
    table_updates: Any  # [slots, 3]


class Field(NamedTuple):
    """A part of a packed array."""

    begin: int
    end: int
    shape: tuple[int, ...]


def fields_of(shapes: Iterable[tuple[int, ...]]) -> tuple[Field, ...]:
    """Where arrays of these shapes stand, one behind the other."""
    shapes = tuple(shapes)
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    return tuple(Field(*field) for field in zip([0, *ends[:-1]], ends, shapes, strict=True))


@functools.cache
def _layout(bucket: Bucket, page_size: int, sampler: Sampler) -> tuple[Field, ...]:
    _, slots, tokens = bucket
    if bucket.kind == "decode":
        return fields_of(((slots,), (slots,), (slots, 3)))
    num_updates = tokens // page_size + slots  # each chunk fills whole pages, and begins one
    extended = ((slots,), (tokens,)) if sampler == Sampler.EXTENDED else ()
    return fields_of(((tokens,), *[(slots,)] * 5, (slots, ROW_WIDTH), (num_updates, 3), *extended))


def input_size(bucket: Bucket, page_size: int, sampler: Sampler = Sampler.GREEDY) -> int:
    """Elements of a step's packed input."""
    return _layout(bucket, page_size, sampler)[-1].end


def unpack(
    packed: Any, bucket: Bucket, page_size: int, sampler: Sampler = Sampler.GREEDY
) -> PrefillInput | DecodeInput:
    """Views of a packed input (NumPy), or slices of it (JAX)."""
    fields = (packed[f.begin : f.end].reshape(f.shape) for f in _layout(bucket, page_size, sampler))
    return PrefillInput(*fields) if bucket.kind == "prefill" else DecodeInput(*fields)


def unpack_output(
    packed: np.ndarray, bucket: Bucket | None = None, sampler: Sampler = Sampler.GREEDY
) -> StepOutput:
    """From int32 [slots, K + 2]: tokens, number of them, status. An EXTENDED step's output is flat: these
    columns and Logprobs of each slot, then Logprobs of each token of a prefill bucket."""
    if sampler != Sampler.EXTENDED or bucket is None:
        return StepOutput(packed[:, :-2], packed[:, -2], packed[:, -1])
    width = TOKENS_PER_STEP + 2
    end = bucket.slots * (width + LOGPROBS_WIDTH)
    slots = packed[:end].reshape(bucket.slots, -1)
    output = unpack_output(slots[:, :width])._replace(logprobs=_unpack_logprobs(slots[:, width:]))
    if bucket.kind == "decode":
        return output
    return output._replace(prompt_logprobs=_unpack_logprobs(packed[end:].reshape(bucket.tokens, -1)))


LOGPROBS_WIDTH = 2 + 2 * MAX_LOGPROBS + MAX_LOGPROB_TOKEN_IDS  # columns of a Logprobs, in its field order


def _unpack_logprobs(columns: Int[np.ndarray, "positions width"]) -> Logprobs:
    tops = 2 + MAX_LOGPROBS, 2 + 2 * MAX_LOGPROBS
    parts = np.split(np.ascontiguousarray(columns), (1, 2, *tops), axis=1)
    logprob, rank, top_ids, top_logprobs, by_id = parts
    floats = (part.view(np.float32) for part in (top_logprobs, by_id))
    return Logprobs(logprob[:, 0].view(np.float32), rank[:, 0], top_ids, *floats)


@functools.cache
def padding(bucket: Bucket, num_rows: int, page_size: int, sampler: Sampler = Sampler.GREEDY) -> np.ndarray:
    """A packed input of nothing but padding: shared, so copy it before you write."""
    packed = np.zeros(input_size(bucket, page_size, sampler), np.int32)
    fields = unpack(packed, bucket, page_size, sampler)
    fields.rows[:] = num_rows
    fields.table_updates[:, 0] = num_rows
    if isinstance(fields, PrefillInput):
        fields.q_starts[:] = bucket.tokens
        if fields.targets is not None:
            fields.targets[:] = -1
    return packed


def pack(
    plan: StepPlan,
    num_rows: int,
    page_size: int,
    sampler: Sampler | None = None,
    row_data: tuple[np.ndarray, ...] = (),
) -> StepInput:
    """The plan as one array, for the program of `sampler`, or of the plan's own."""
    sampler = plan.sampler if sampler is None else sampler
    packed = padding(plan.bucket, num_rows, page_size, sampler).copy()
    fields = unpack(packed, plan.bucket, page_size, sampler)
    fields.rows[: len(plan.rows)] = plan.rows
    if plan.table_updates:
        fields.table_updates[: len(plan.table_updates)] = plan.table_updates
    if isinstance(fields, PrefillInput):
        _pack_chunks(plan.chunks, fields)
    else:
        fields.frozen[: len(plan.frozen)] = plan.frozen
    return StepInput(plan.bucket, sampler, packed, row_data)


def check_table_updates(
    step: StepInput, *, num_rows: int, num_pages: int, pages_per_seq: int, page_size: int
) -> None:
    """Raise JBatchError for a page id or a place in a block table that does not exist. On the device it would
    be clamped or dropped, and the step would read another sequence's cache."""
    if step.packed.shape != (input_size(step.bucket, page_size, step.sampler),):
        return  # the program refuses it
    updates = unpack(step.packed, step.bucket, page_size, step.sampler).table_updates
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
        if fields.targets is not None:
            fields.prompt_lens[slot] = chunk.prompt_len
            fields.targets[begin : begin + len(chunk.targets)] = chunk.targets
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
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        prompt_len=sequence.num_prompt,
        has_bias=bool(params.logit_bias or params.allowed_token_ids),
        has_bad_words=bool(sequence.request.bad_word_ids),
        stop_ids=sequence.request.stop_ids if sequence.request.max_tokens else (),  # what it draws is dropped
    )


def chunk_of(sequence: Sequence, start: int, end: int) -> Chunk:
    """Positions `start` to `end` of a sequence, to prefill."""
    return Chunk(
        token_ids=tuple(sequence.token_ids[start:end]),
        start=start,
        num_recomputed=max(0, min(end, sequence.num_computed) - start),
        setup=row_setup(sequence) if end == sequence.num_known else None,
        prompt_len=sequence.num_prompt,
        targets=_targets(sequence, start, end),
    )


def _targets(sequence: Sequence, start: int, end: int) -> tuple[int, ...]:
    """The prompt tokens that a chunk of these positions must score: each one's next. Those of positions that
    were computed before a preemption have been scored."""
    request = sequence.request
    first, last = max(start, sequence.num_computed), min(end, sequence.num_prompt - 1)
    asked = request.params.prompt_logprobs is not None and request.sample_idx == 0  # once for all samples
    if not asked or first >= last:
        return ()
    return (-1,) * (first - start) + request.prompt_token_ids[first + 1 : last + 1]


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
