"""Prefill and decode steps in PyTorch: jbatch/device/step.py's, on the same packed input and the same state.

Everything that depends on the input stays on the device, with fixed shapes, so that a decode step can be
captured as a CUDA graph. PyTorch has no write that drops what is out of range: the state has one more row
and one more page than there are, which take those writes and are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.compare.torch_engine import attention, model
from bench.compare.torch_engine.model import Llama
from bench.compare.torch_engine.sampling import COLUMN, sample
from jbatch.host.plan import Bucket, DecodeInput, PrefillInput, unpack


class State(NamedTuple):
    """What lives on the device between steps, updated in place."""

    rows: Int[Tensor, "num_rows_plus_1 row_width"]
    block_tables: Int[Tensor, "num_rows_plus_1 pages_per_seq"]
    kv_pages: tuple[Float[Tensor, "num_pages_plus_1 2 kv_heads page_size head_dim"], ...]

    @property
    def num_rows(self) -> int:
        return len(self.rows) - 1


class Functions(NamedTuple):
    """The parts of a step that may be replaced: by compiled ones, or by another kernel."""

    before_attention: Callable[..., tuple[Tensor, Tensor]] = model.before_attention
    after_attention: Callable[..., Tensor] = model.after_attention
    sample: Callable[..., tuple[Tensor, Tensor]] = sample
    decode_attention: attention.Decode = attention.gather_decode


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, [tokens, 2, kv_heads, head_dim], kv_pages


def decode(
    llama: Llama,
    state: State,
    packed: Int[Tensor, " size"],
    bucket: Bucket,
    functions: Functions,
    plain: bool,
) -> Int[Tensor, "slots 3"]:
    """A decode step; its output per slot: token, how many, status."""
    fields = unpack(packed, bucket, state.kv_pages[0].shape[3])
    assert isinstance(fields, DecodeInput)
    rows = fields.rows.long()
    _update_tables(state, fields.table_updates.long())
    columns = state.rows[rows]
    present = rows < state.num_rows
    columns[:, COLUMN["finished"]] |= fields.frozen
    live = present & (columns[:, COLUMN["finished"]] == 0)
    length = columns[:, COLUMN["length"]]
    kv_lens = torch.where(present, length + live, 0)  # a finished row that still computes writes nothing
    tables = state.block_tables[rows]
    tokens = _Tokens(
        columns[:, COLUMN["last_token"]].long(), torch.where(live, length, 0).long(), live, tables, None
    )

    decode_attention = functions.decode_attention(tables, kv_lens)

    def attend(q: Tensor, kv: Tensor, kv_pages: Tensor) -> Tensor:
        del kv  # it is in the cache
        return decode_attention(q, kv_pages)

    hidden = _forward(llama, state, tokens, functions, attend)
    output, columns = functions.sample(model.logits(llama, hidden), columns, kv_lens, live, plain=plain)
    state.rows[rows] = columns
    return output


def prefill(
    llama: Llama,
    state: State,
    packed: Int[Tensor, " size"],
    bucket: Bucket,
    functions: Functions,
    chunks: Sequence[attention.Chunk],
    plain: bool,
) -> Int[Tensor, "slots 3"]:
    """A prefill step; `chunks` are the host's view of the same input."""
    fields = unpack(packed, bucket, state.kv_pages[0].shape[3])
    assert isinstance(fields, PrefillInput)
    rows = fields.rows.long()
    _update_tables(state, fields.table_updates.long())
    axis = torch.arange(bucket.tokens, device=packed.device, dtype=torch.int32)
    slots = (torch.searchsorted(fields.q_starts, axis, right=True) - 1).clamp(min=0)
    places = axis - fields.q_starts[slots]
    live = (places >= 0) & (places < fields.q_lens[slots])
    positions = torch.where(live, fields.kv_lens[slots] - fields.q_lens[slots] + places, 0)
    tables = state.block_tables[rows]
    tokens = _Tokens(fields.tokens.long(), positions.long(), live, tables, slots)

    def attend(q: Tensor, kv: Tensor, kv_pages: Tensor) -> Tensor:
        return attention.prefill(q, kv, kv_pages, tables, chunks)

    hidden = _forward(llama, state, tokens, functions, attend)
    last = (fields.q_starts + fields.q_lens - 1).clamp(0, bucket.tokens - 1).long()
    samples = fields.samples > 0
    output, columns = functions.sample(
        model.logits(llama, hidden[last]), fields.setup, fields.kv_lens, samples, plain=plain
    )
    state.rows[torch.where(samples, rows, state.num_rows)] = columns  # the others' rows stay as they are
    return output


class _Tokens(NamedTuple):
    ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    live: Bool[Tensor, " tokens"]  # the others' keys and values are dropped
    block_tables: Int[Tensor, "slots pages_per_seq"]
    slots: Int[Tensor, " tokens"] | None  # None: one token per slot


def _forward(
    llama: Llama, state: State, tokens: _Tokens, functions: Functions, attend: Attend
) -> Float[Tensor, "tokens embed"]:
    num_pages, _, _, page_size, _ = state.kv_pages[0].shape
    slots = torch.arange(len(tokens.ids), device=tokens.ids.device) if tokens.slots is None else tokens.slots
    page_ids = tokens.block_tables[slots, tokens.positions // page_size].long()
    page_ids = torch.where(tokens.live, page_ids, num_pages - 1)  # the page that is never read
    offsets = tokens.positions % page_size
    cos, sin = model.cos_sin(llama, tokens.positions)
    x = llama.embedding[tokens.ids]
    for layer, kv_pages in zip(llama.layers, state.kv_pages, strict=True):
        q, kv = functions.before_attention(layer, llama.sizes, x, cos, sin)
        kv_pages[page_ids, :, :, offsets] = kv
        x = functions.after_attention(layer, llama.sizes, x, attend(q, kv, kv_pages))
    return model.rms_norm(x, llama.norm, llama.sizes.eps)


def _update_tables(state: State, updates: Int[Tensor, "num_updates 3"]) -> None:
    state.block_tables[updates[:, 0], updates[:, 1]] = updates[:, 2].to(state.block_tables.dtype)
