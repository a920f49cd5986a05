"""Tile sizes as data: tuning.json, and a rule for what is not in it.

The chunk of decode and the tiles that products run over decide the order of summation, so they depend on
the model and the device alone, never on the bucket: an engine's results must not change with its batch.
Rows of the table may be keyed by bucket in all else (stages, warps, the size of a persistent grid).
"""

from __future__ import annotations

from typing import NamedTuple


class MosaicDecode(NamedTuple):
    """Tiles of the Mosaic decode kernel."""

    chunk: int  # tokens of a work item
    block_kv: int  # tokens of a product
    num_stages: int  # of the ring of pages in shared memory
    num_ctas: int  # of the persistent grid


class MosaicPrefill(NamedTuple):
    """Tiles of the Mosaic prefill kernel; a tile has 128 rows of (head of the group, token)."""

    block_kv: int
    num_stages: int
    p_in_registers: bool  # the probabilities, or through shared memory


class TritonDecode(NamedTuple):
    """Tiles of the Triton decode kernel."""

    chunk: int
    block_kv: int
    num_warps: int
    num_stages: int
    num_ctas: int


class TritonPrefill(NamedTuple):
    """Tiles of the Triton prefill kernel."""

    block_q: int  # rows of (token, head of the group)
    block_kv: int
    num_warps: int
    num_stages: int
