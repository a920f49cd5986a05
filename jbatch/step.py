"""The two steps a device computes: pure functions (params, state, packed input) -> (state, packed output).

`forward` and `sample` are separate, so that variants of sampling can be fused with a step or run beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jbatch import model, sampling
from jbatch.attention import Attention
from jbatch.config import ModelConfig
from jbatch.plan import Bucket, DecodeInput, PrefillInput, Status, unpack
from jbatch.sampling_params import Sampler
from jbatch.state import EngineState, read_rows, write_columns
from pallas_kernels import RaggedMetadata, paged_attention, plan_work, write_kv

Params = tuple[jax.Array, ...]
Step = Callable[[Params, EngineState, Array], tuple[EngineState, Array]]


def make_step(
    config: ModelConfig,
    bucket: Bucket,
    page_size: int,
    *,
    sampler: Sampler,
    attention: Attention,
) -> Step:
    """The function to compile for one bucket; its output, int32 [slots, K + 2]: tokens, how many, status."""

    def step(params: Params, state: EngineState, packed: Int[Array, " size"]) -> tuple[EngineState, Array]:
        fields = unpack(packed, bucket, page_size)
        llama = model.build(config, params)
        if isinstance(fields, PrefillInput):
            return _prefill(llama, state, fields, sampler, attention)
        return _decode(llama, state, fields, sampler, attention)

    return step


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
    metadata = plan_work(like, kv_pages[0], tokens.block_tables, tokens.metadata, **options)

    def attend(layer_idx: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        updated[layer_idx] = write_kv(updated[layer_idx], k, v, page_ids, offsets)
        with jax.named_scope("paged_attention"):  # tools/compile_for.py tells its instructions by it
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
) -> Sampled:
    """Draw a token for each live slot, whose cache then holds `lengths` tokens, and decide how it goes on."""
    rows = read_rows(columns)
    logits = sampling.ban_stop_ids(logits, rows)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)  # a NaN would become an ordinary-looking token
    tokens = sampling.draw(logits, rows, lengths, sampler=sampler)
    stopped = jnp.any(tokens[:, None] == rows.stop_ids, axis=-1)
    budget = rows.budget - 1
    status = jnp.where(budget <= 0, Status.OUT_OF_BUDGET, Status.RUNNING)
    status = jnp.where(stopped, Status.STOPPED, status)
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
    return Sampled(jnp.where(live, tokens, 0), live & finite, status, columns)


def _prefill(
    llama: model.Llama, state: EngineState, fields: PrefillInput, sampler: Sampler, attention: Attention
) -> tuple[EngineState, Array]:
    tables = _update_tables(state.block_tables, fields.table_updates)
    axis = jnp.arange(fields.tokens.shape[0])
    slots = jnp.searchsorted(fields.q_starts, axis, side="right", method="compare_all") - 1  # no loop
    offsets = axis - fields.q_starts[slots]
    live = (offsets >= 0) & (offsets < fields.q_lens[slots])  # none before the first chunk: an idle step
    positions = jnp.where(live, fields.kv_lens[slots] - fields.q_lens[slots] + offsets, 0)
    metadata = RaggedMetadata(fields.q_starts, fields.q_lens, fields.kv_lens)
    tokens = Tokens(fields.tokens, positions, live, slots, tables[fields.rows], metadata)
    kv_pages, hidden = forward(llama, state.kv_pages, tokens, attention)

    last = jnp.clip(fields.q_starts + fields.q_lens - 1, 0, axis.shape[0] - 1)
    sampled = sample(
        llama.logits(hidden[last]), fields.setup, fields.kv_lens, fields.samples > 0, sampler=sampler
    )
    num_rows = state.rows.shape[0]
    begun = jnp.where(fields.samples > 0, fields.rows, num_rows)  # the others' rows stay as they are
    rows = state.rows.at[begun].set(sampled.columns, mode="drop")
    return EngineState(rows, tables, kv_pages), _pack_output(sampled)


def _decode(
    llama: model.Llama, state: EngineState, fields: DecodeInput, sampler: Sampler, attention: Attention
) -> tuple[EngineState, Array]:
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
    sampled = sample(llama.logits(hidden), columns, kv_lens, live, sampler=sampler)
    new_rows = state.rows.at[fields.rows].set(sampled.columns, mode="drop")
    return EngineState(new_rows, tables, kv_pages), _pack_output(sampled)


def _update_tables(
    block_tables: Int[Array, "num_rows pages_per_seq"], updates: Int[Array, "num_updates 3"]
) -> Int[Array, "num_rows pages_per_seq"]:
    return block_tables.at[updates[:, 0], updates[:, 1]].set(updates[:, 2], mode="drop")


def _pack_output(sampled: Sampled) -> Int[Array, "slots width"]:
    columns = (sampled.tokens, sampled.num_tokens, sampled.status)
    return jnp.stack([column.astype(jnp.int32) for column in columns], axis=1)
