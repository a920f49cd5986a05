"""The spans that a step computes, in parts of the packed token axis, and the model's pass over them."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jbatch.device import model
from jbatch.device.backend import Attention
from jbatch.device.state import Rows, write_columns
from jbatch.seam.bucket import Bucket
from jbatch.seam.step_input import StepFields
from pallas_kernels import RaggedMetadata, add_work_list, paged_attention, rotate_and_write


class Part(NamedTuple):
    """A part of the packed token axis: tokens, where they stand, and whose cache they extend."""

    ids: Int[Array, " tokens"]
    positions: Int[Array, " tokens"]
    live: Bool[Array, " tokens"]  # the others' keys and values are dropped
    owners: Int[Array, " tokens"]  # which of the block tables is a token's
    block_tables: Int[Array, "sequences pages_per_seq"]
    metadata: RaggedMetadata
    max_q_len: int | None  # 1: a token of each sequence


def parts_of(
    rows: Int[Array, "num_rows row_width"],
    tables: Int[Array, "num_rows pages_per_seq"],
    fields: StepFields[jax.Array],
    bucket: Bucket,
) -> list[Part]:
    """Decoding sequences, then chunks; without a part that the bucket lacks."""
    parts = [_decoding(rows, tables, fields)] if bucket.slots else []
    return [*parts, _chunks(tables, fields)] if bucket.tokens else parts


def _decoding(
    rows: Int[Array, "num_rows row_width"],
    tables: Int[Array, "num_rows pages_per_seq"],
    fields: StepFields[jax.Array],
) -> Part:
    """The device knows these sequences: their last token goes behind what they have in the cache."""
    present = fields.slot_rows < rows.shape[0]
    state = Rows(with_frozen(rows, fields))
    live = present & (state["finished"] == 0)
    # A finished row that still computes reads its cache and writes nothing.
    kv_lens = jnp.where(present, state["length"] + live, 0)
    slots = jnp.arange(fields.slot_rows.shape[0])
    metadata = RaggedMetadata(slots, present.astype(jnp.int32), kv_lens)
    positions = jnp.where(live, state["length"], 0)
    return Part(state["last_token"], positions, live, slots, tables[fields.slot_rows], metadata, 1)


def with_frozen(
    rows: Int[Array, "num_rows row_width"], fields: StepFields[jax.Array]
) -> Int[Array, "slots row_width"]:
    """The slots' rows: frozen once is finished for good."""
    columns = rows[fields.slot_rows]
    return write_columns(columns, finished=Rows(columns)["finished"] | fields.frozen)


def _chunks(tables: Int[Array, "num_rows pages_per_seq"], fields: StepFields[jax.Array]) -> Part:
    """The host knows these tokens; which chunk each is of follows from where the chunks begin."""
    axis = jnp.arange(fields.tokens.shape[0])
    owners = jnp.searchsorted(fields.q_starts, axis, side="right", method="compare_all") - 1  # no loop
    offsets = axis - fields.q_starts[owners]
    live = (offsets >= 0) & (offsets < fields.q_lens[owners])  # none before the first chunk: an idle step
    starts = fields.kv_lens - fields.q_lens
    positions = jnp.where(live, starts[owners] + offsets, 0)
    metadata = RaggedMetadata(fields.q_starts, fields.q_lens, fields.kv_lens)
    return Part(fields.tokens, positions, live, owners, tables[fields.chunk_rows], metadata, None)


def forward(
    llama: model.Llama, kv_pages: tuple[jax.Array, ...], parts: list[Part], attention: Attention
) -> tuple[tuple[jax.Array, ...], Float[Array, "tokens embed"]]:
    """The cache with all parts' keys and values in it, and hidden states, part behind part."""
    lone = sum(len(part.ids) for part in parts) == 1 and attention.decode != "xla"
    if lone:
        parts = [_with_dead_neighbour(parts[0])]
    num_pages, _, _, page_size, _ = kv_pages[0].shape
    page_ids, offsets = [], []
    for part in parts:
        pages = part.block_tables[part.owners, part.positions // page_size]
        page_ids.append(jnp.where(part.live, pages, num_pages))  # out of range: dropped
        offsets.append(part.positions % page_size)
    # Behind a barrier, or the kernel that writes a layer's cache works them out again, from the packed input.
    places = lax.optimization_barrier((_join(page_ids), _join(offsets)))
    updated = list(kv_pages)
    writing: dict[str, Any] = {"implementation": attention.rotate, "interpret": attention.interpret}
    works = [_work(llama.config.num_heads, kv_pages[0], part, attention) for part in parts]
    ends = list(itertools.accumulate(len(part.ids) for part in parts))

    def attend(layer_idx: int, qkv: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        rotation = (qkv, cos, sin, *places)
        cache, q = rotate_and_write(updated[layer_idx], *rotation, **writing)
        updated[layer_idx] = cache
        queries = [q] if len(parts) == 1 else jnp.split(q, ends[:-1])
        with jax.named_scope("paged_attention"):  # the gate tells its instructions by it
            return _join(
                [
                    paged_attention(
                        queries[idx],
                        cache,
                        part.block_tables,
                        works[idx].metadata,
                        scale=q.shape[-1] ** -0.5,
                        **works[idx].options,
                    )
                    for idx, part in enumerate(parts)
                ]
            )

    ids, positions = _join([part.ids for part in parts]), _join([part.positions for part in parts])
    hidden = llama(ids, positions, attend)
    return tuple(updated), hidden[:1] if lone else hidden  # in this order: `attend` fills `updated`


def _with_dead_neighbour(part: Part) -> Part:
    """A lone decoding sequence in two slots, the second of them dead.

    Of one row XLA's GPU compiler makes vectors, whose RMSNorm is two kernels instead of one: 64 launches more
    in a step of 32 layers.
    """

    def padded(array: Array) -> Array:
        return jnp.pad(array, ((0, 1), *((0, 0) for _ in array.shape[1:])))

    slots, (_, q_lens, kv_lens, *_) = jnp.arange(2), part.metadata
    return part._replace(
        ids=padded(part.ids),
        positions=padded(part.positions),
        live=padded(part.live),
        owners=slots,
        block_tables=padded(part.block_tables),
        metadata=RaggedMetadata(slots, padded(q_lens), padded(kv_lens)),
    )


class _Work(NamedTuple):
    """What the attention of a part has in common in all layers."""

    metadata: RaggedMetadata  # with the kernel's work list, made once
    options: dict[str, Any]


def _work(num_heads: int, kv_pages: jax.Array, part: Part, attention: Attention) -> _Work:
    options: dict[str, Any] = {
        "max_q_len": part.max_q_len,
        "implementation": attention.decode if part.max_q_len == 1 else attention.prefill,
        "interpret": attention.interpret,
    }
    like = jax.ShapeDtypeStruct((*part.ids.shape, num_heads, kv_pages.shape[-1]), kv_pages.dtype)
    return _Work(add_work_list(like, kv_pages, part.block_tables, part.metadata, **options), options)


def _join(arrays: list[jax.Array]) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)
