"""The spans that a step computes, and the model's pass over them: jbatch/device/spans.py in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.compare.torch_engine import attention, model
from bench.compare.torch_engine.attention import Chunk, Decode
from bench.compare.torch_engine.functions import Functions
from bench.compare.torch_engine.model import Llama
from bench.compare.torch_engine.state import State
from jbatch.seam.rows import COLUMNS
from jbatch.seam.step_input import StepFields

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, [tokens, 2, kv_heads, head_dim], kv_pages


class Part(NamedTuple):
    """A part of the packed token axis: tokens, where they stand, and whose cache they extend."""

    ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    live: Bool[Tensor, " tokens"]  # the others' keys and values are dropped
    owners: Int[Tensor, " tokens"]  # which of the block tables is a token's
    block_tables: Int[Tensor, "sequences pages_per_seq"]
    kv_lens: Int[Tensor, " sequences"]
    attend: Attend


def parts_of(
    state: State,
    fields: StepFields[Tensor],
    slots: Int[Tensor, "slots row_width"],
    chunks: Sequence[Chunk],
    decode_attention: Decode,
) -> list[Part]:
    """Decoding sequences, then chunks; without a part that the step lacks. `slots` is of `with_frozen`."""
    parts = [_decoding(state, fields, slots, decode_attention)] if len(slots) else []
    return [*parts, _chunks(state, fields, chunks)] if len(fields.tokens) else parts


def _decoding(
    state: State,
    fields: StepFields[Tensor],
    columns: Int[Tensor, "slots row_width"],
    decode_attention: Decode,
) -> Part:
    """The device knows these sequences: their last token goes behind what they have in the cache."""
    rows = fields.slot_rows.long()
    present = rows < state.num_rows
    live = present & (columns[:, COLUMNS["finished"]] == 0)
    length = columns[:, COLUMNS["length"]]
    kv_lens = torch.where(present, length + live, 0)  # a finished row that still computes writes nothing
    tables = state.block_tables[rows]
    decode = decode_attention(tables, kv_lens)

    def attend(q: Tensor, kv: Tensor, kv_pages: Tensor) -> Tensor:
        del kv  # it is in the cache
        return decode(q, kv_pages)

    return Part(
        ids=columns[:, COLUMNS["last_token"]].long(),
        positions=torch.where(live, length, 0).long(),
        live=live,
        owners=torch.arange(len(rows), device=rows.device),
        block_tables=tables,
        kv_lens=kv_lens,
        attend=attend,
    )


def with_frozen(state: State, fields: StepFields[Tensor]) -> Int[Tensor, "slots row_width"]:
    """The slots' rows: frozen once is finished for good."""
    columns = state.rows[fields.slot_rows.long()]
    columns[:, COLUMNS["finished"]] |= fields.frozen
    return columns


def _chunks(state: State, fields: StepFields[Tensor], chunks: Sequence[Chunk]) -> Part:
    """The host knows these tokens; which chunk each is of follows from where the chunks begin."""
    axis = torch.arange(len(fields.tokens), device=fields.tokens.device, dtype=torch.int32)
    owners = (torch.searchsorted(fields.q_starts, axis, right=True) - 1).clamp(min=0)
    offsets = axis - fields.q_starts[owners]
    live = (offsets >= 0) & (offsets < fields.q_lens[owners])
    starts = fields.kv_lens - fields.q_lens
    tables = state.block_tables[fields.chunk_rows.long()]

    def attend(q: Tensor, kv: Tensor, kv_pages: Tensor) -> Tensor:
        return attention.prefill(q, kv, kv_pages, tables, chunks)

    return Part(
        ids=fields.tokens.long(),
        positions=torch.where(live, starts[owners] + offsets, 0).long(),
        live=live,
        owners=owners,
        block_tables=tables,
        kv_lens=fields.kv_lens,
        attend=attend,
    )


def forward(
    llama: Llama, state: State, parts: list[Part], functions: Functions
) -> Float[Tensor, "tokens embed"]:
    """Hidden states, part behind part; the cache has all parts' keys and values then."""
    num_pages, _, _, page_size, _ = state.kv_pages[0].shape
    ids, positions, live = (_join(column) for column in list(zip(*parts, strict=True))[:3])
    page_ids = _join([part.block_tables[part.owners, part.positions // page_size] for part in parts])
    page_ids = torch.where(live, page_ids, num_pages - 1).long()  # the page that is never read
    offsets = positions % page_size
    lens = [len(part.ids) for part in parts]
    cos, sin = model.cos_sin(llama, positions)
    x = llama.embedding[ids]
    for layer, kv_pages in zip(llama.layers, state.kv_pages, strict=True):
        q, kv = functions.before_attention(layer, llama.sizes, x, cos, sin)
        kv_pages[page_ids, :, :, offsets] = kv
        of_parts = zip(parts, q.split(lens), kv.split(lens), strict=True)
        attended = _join([part.attend(queries, new, kv_pages) for part, queries, new in of_parts])
        x = functions.after_attention(layer, llama.sizes, x, attended)
    return model.rms_norm(x, llama.norm, llama.sizes.eps)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
