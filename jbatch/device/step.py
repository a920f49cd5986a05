"""The two steps a device computes: pure functions (params, state, packed input) -> (state, packed output).

`forward` and `sample` are separate, so that variants of sampling can be fused with a step or run beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jbatch.config import ModelConfig
from jbatch.device import model, sampling
from jbatch.device.backend import Attention
from jbatch.device.logits import LogitsFn, pack_logprobs, process, report, report_targets
from jbatch.device.state import EngineState, ExtraState, count_chunks, count_drawn, read_rows, write_columns
from jbatch.host.plan import Bucket, DecodeInput, Logprobs, PrefillInput, RowSetup, Status, unpack
from jbatch.host.row_data import RULED_OUT
from jbatch.sampling_params import Sampler
from pallas_kernels import RaggedMetadata, add_work_list, paged_attention, write_kv

Params = tuple[jax.Array, ...]
Step = Callable[..., tuple[Any, ...]]  # (params, state, packed), or of EXTENDED steps as `make_step` says
Result = tuple[EngineState, ExtraState | None, Array]  # what is left of a state, and the packed output


def make_step(
    config: ModelConfig,
    bucket: Bucket,
    page_size: int,
    *,
    sampler: Sampler,
    attention: Attention,
    logits_fn: LogitsFn | None = None,
) -> Step:
    """The function to compile for one bucket; its output, int32 [slots, K + 2]: tokens, how many, status.

    With Sampler.EXTENDED it is (params, state, extra, packed) -> (state, extra, output), and the output is
    flat: see `plan.unpack_output`.
    """

    def run(params: Params, state: EngineState, extra: ExtraState | None, packed: Array) -> Result:
        fields = unpack(packed, bucket, page_size, sampler)
        llama = model.build(config, params)
        drawing = Drawing(sampler, logits_fn)
        if isinstance(fields, PrefillInput):
            return _prefill(llama, state, extra, fields, attention, drawing)
        return _decode(llama, state, extra, fields, attention, drawing)

    def step(params: Params, state: EngineState, packed: Int[Array, " size"]) -> tuple[EngineState, Array]:
        state, _, output = run(params, state, None, packed)
        return state, output

    def extended_step(
        params: Params, state: EngineState, extra: ExtraState, packed: Int[Array, " size"]
    ) -> Result:
        return run(params, state, extra, packed)

    if sampler != Sampler.EXTENDED:
        return step
    extended_step.__name__ = step.__name__  # tools/ look for `jit(step)`
    return extended_step


class Drawing(NamedTuple):
    """How a program draws tokens."""

    sampler: Sampler
    logits_fn: LogitsFn | None = None


class Tokens(NamedTuple):
    """What a step feeds the model: tokens, where they stand, and whose cache they extend."""

    ids: Int[Array, " tokens"]
    positions: Int[Array, " tokens"]
    live: Bool[Array, " tokens"]  # the others' keys and values are dropped
    slots: Int[Array, " tokens"]
    block_tables: Int[Array, "slots pages_per_seq"]
    metadata: RaggedMetadata


def forward(
    llama: model.Llama,
    kv_pages: tuple[jax.Array, ...],
    tokens: Tokens,
    attention: Attention,
    *,
    max_q_len: int | None = None,
) -> tuple[tuple[jax.Array, ...], Float[Array, "tokens embed"]]:
    """Hidden states, and the cache with the tokens' keys and values in it. `max_q_len=1`: a decode step."""
    num_pages, _, _, page_size, head_dim = kv_pages[0].shape
    page_ids = tokens.block_tables[tokens.slots, tokens.positions // page_size]
    page_ids = jnp.where(tokens.live, page_ids, num_pages)  # out of range: dropped
    offsets = tokens.positions % page_size
    updated = list(kv_pages)
    options: dict[str, Any] = {
        "max_q_len": max_q_len,
        "implementation": attention.decode if max_q_len == 1 else attention.prefill,
        "interpret": attention.interpret,
    }
    like = jax.ShapeDtypeStruct((*tokens.ids.shape, llama.config.num_heads, head_dim), kv_pages[0].dtype)
    metadata = add_work_list(like, kv_pages[0], tokens.block_tables, tokens.metadata, **options)

    def attend(layer_idx: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        updated[layer_idx] = write_kv(updated[layer_idx], k, v, page_ids, offsets)
        with jax.named_scope("paged_attention"):  # the gate tells its instructions by it
            cache = updated[layer_idx], tokens.block_tables
            return paged_attention(q, *cache, metadata, scale=head_dim**-0.5, **options)

    hidden = llama(tokens.ids, tokens.positions, attend)
    return tuple(updated), hidden  # in this order: `attend` fills `updated`


class Sampled(NamedTuple):
    """The outcome of sampling, per slot."""

    tokens: Int[Array, " slots"]
    num_tokens: Int[Array, " slots"]
    status: Int[Array, " slots"]
    columns: Int[Array, "slots row_width"]  # the rows of device state, advanced by the token


def sample(
    logits: Float[Array, "slots vocab"],
    columns: Int[Array, "slots row_width"],
    lengths: Int[Array, " slots"],
    live: Bool[Array, " slots"],
    *,
    sampler: Sampler,
    process: Callable[[Array, RowSetup], Array] | None = None,
) -> Sampled:
    """Draw a token for each live slot, whose cache then holds `lengths` tokens, and decide how it goes on.

    `process` is what EXTENDED steps do to the logits; others rule out stop ids.
    """
    rows = read_rows(columns)
    if process is None:
        logits = sampling.ban_stop_ids(logits, rows)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)  # a NaN would become an ordinary-looking token
    possible = finite
    if process is not None:
        logits = process(logits, rows)
        finite &= jnp.all(jnp.isfinite(logits), axis=-1)
        possible = finite & (logits.max(axis=-1) > RULED_OUT / 2)
    tokens = sampling.draw(logits, rows, lengths, sampler=sampler)
    stopped = jnp.any(tokens[:, None] == rows.stop_ids, axis=-1)
    budget = rows.budget - 1
    status = jnp.where(budget <= 0, Status.OUT_OF_BUDGET, Status.RUNNING)
    status = jnp.where(stopped, Status.STOPPED, status)
    if process is not None:
        status = jnp.where(possible, status, Status.NOTHING_LEFT)
    status = jnp.where(live, jnp.where(finite, status, Status.NON_FINITE), Status.RUNNING)
    advanced = write_columns(
        columns,
        last_token=tokens,
        length=lengths,
        budget=budget,
        min_left=rows.min_left - 1,
        finished=status != Status.RUNNING,
    )
    columns = jnp.where(live[:, None], advanced, columns)
    return Sampled(jnp.where(live, tokens, 0), live & possible, status, columns)


def _prefill(
    llama: model.Llama,
    state: EngineState,
    extra: ExtraState | None,
    fields: PrefillInput,
    attention: Attention,
    drawing: Drawing,
) -> Result:
    tables = _update_tables(state.block_tables, fields.table_updates)
    axis = jnp.arange(fields.tokens.shape[0])
    slots = jnp.searchsorted(fields.q_starts, axis, side="right", method="compare_all") - 1  # no loop
    offsets = axis - fields.q_starts[slots]
    live = (offsets >= 0) & (offsets < fields.q_lens[slots])  # none before the first chunk: an idle step
    starts = fields.kv_lens - fields.q_lens
    positions = jnp.where(live, starts[slots] + offsets, 0)
    metadata = RaggedMetadata(fields.q_starts, fields.q_lens, fields.kv_lens)
    tokens = Tokens(fields.tokens, positions, live, slots, tables[fields.rows], metadata)
    kv_pages, hidden = forward(llama, state.kv_pages, tokens, attention)

    last = jnp.clip(fields.q_starts + fields.q_lens - 1, 0, axis.shape[0] - 1)
    num_rows = state.rows.shape[0]
    columns = fields.setup
    if extra is not None:
        begun = jnp.where(starts == 0, fields.rows, num_rows)
        rows = jnp.where(live, fields.rows[slots], num_rows)
        extra = count_chunks(extra, begun, rows, fields.tokens, positions < fields.prompt_lens[slots])
        columns = write_columns(columns, last_token=fields.tokens[last])
    drawn = Draw(fields.rows, columns, fields.kv_lens, fields.samples > 0)
    sampled, extra, logprobs = _draw(llama.logits(hidden[last]), drawn, extra, drawing)
    begun = jnp.where(fields.samples > 0, fields.rows, num_rows)  # the others' rows stay as they are
    state = EngineState(state.rows.at[begun].set(sampled.columns, mode="drop"), tables, kv_pages)
    if logprobs is None:
        return state, extra, _pack_output(sampled)
    targets = report_targets(llama.logits, hidden, fields.targets)
    return state, extra, _pack_extended(sampled, logprobs, targets)


def _decode(
    llama: model.Llama,
    state: EngineState,
    extra: ExtraState | None,
    fields: DecodeInput,
    attention: Attention,
    drawing: Drawing,
) -> Result:
    tables = _update_tables(state.block_tables, fields.table_updates)
    present = fields.rows < state.rows.shape[0]
    columns = state.rows[fields.rows]
    columns = write_columns(columns, finished=read_rows(columns).finished | fields.frozen)
    rows = read_rows(columns)
    live = present & (rows.finished == 0)
    # A finished row that still computes reads its cache and writes nothing.
    kv_lens = jnp.where(present, rows.length + live, 0)
    slots = jnp.arange(fields.rows.shape[0])
    positions = jnp.where(live, rows.length, 0)
    metadata = RaggedMetadata(slots, present.astype(jnp.int32), kv_lens)
    tokens = Tokens(rows.last_token, positions, live, slots, tables[fields.rows], metadata)
    kv_pages, hidden = forward(llama, state.kv_pages, tokens, attention, max_q_len=1)
    drawn = Draw(fields.rows, columns, kv_lens, live)
    sampled, extra, logprobs = _draw(llama.logits(hidden), drawn, extra, drawing)
    new_rows = state.rows.at[fields.rows].set(sampled.columns, mode="drop")
    state = EngineState(new_rows, tables, kv_pages)
    return state, extra, _pack_output(sampled) if logprobs is None else _pack_extended(sampled, logprobs)


class Draw(NamedTuple):
    """The slots that get a token."""

    rows: Int[Array, " slots"]
    columns: Int[Array, "slots row_width"]
    lengths: Int[Array, " slots"]
    live: Bool[Array, " slots"]


def _draw(
    logits: Float[Array, "slots vocab"], draw: Draw, extra: ExtraState | None, drawing: Drawing
) -> tuple[Sampled, ExtraState | None, Logprobs | None]:
    """A token for each live slot; in EXTENDED steps it is counted and reported on."""
    columns, lengths, live = draw.columns, draw.lengths, draw.live
    if extra is None:
        return sample(logits, columns, lengths, live, sampler=drawing.sampler), None, None
    of_slots = jax.tree.map(lambda leaf: leaf[draw.rows], extra)

    def process_rows(logits: Array, rows: RowSetup) -> Array:
        return process(logits, rows, lengths, of_slots, drawing.logits_fn)

    sampled = sample(logits, columns, lengths, live, sampler=drawing.sampler, process=process_rows)
    extra = count_drawn(extra, draw.rows, sampled.tokens, sampled.num_tokens)
    return sampled, extra, report(logits, sampled.tokens, of_slots.logprob_ids)


def _update_tables(
    block_tables: Int[Array, "num_rows pages_per_seq"], updates: Int[Array, "num_updates 3"]
) -> Int[Array, "num_rows pages_per_seq"]:
    return block_tables.at[updates[:, 0], updates[:, 1]].set(updates[:, 2], mode="drop")


def _pack_output(sampled: Sampled) -> Int[Array, "slots width"]:
    columns = (sampled.tokens, sampled.num_tokens, sampled.status)
    return jnp.stack([column.astype(jnp.int32) for column in columns], axis=1)


def _pack_extended(sampled: Sampled, *logprobs: Logprobs) -> Int[Array, " size"]:
    """Of the slots, and of the tokens of a prefill step."""
    slots, *tokens = (pack_logprobs(one) for one in logprobs)
    slots = jnp.concatenate([_pack_output(sampled), slots], axis=1)
    return jnp.concatenate([columns.reshape(-1) for columns in (slots, *tokens)])
