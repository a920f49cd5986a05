"""Tile sizes as data: tuning.json, and a rule for what is not in it.

The chunk of decode and the tiles that products run over decide the order of summation, so they depend on
the model and the device alone, never on the bucket: an engine's results must not change with its batch.
Rows of the table may be keyed by bucket in all else (stages, warps, the size of a persistent grid).
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from typing import Any, NamedTuple

from pallas_kernels.problem import Kind, Problem


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


Tiles = MosaicDecode | MosaicPrefill | TritonDecode | TritonPrefill

TILES: dict[tuple[str, Kind], type] = {
    ("mosaic", "decode"): MosaicDecode,
    ("mosaic", "prefill"): MosaicPrefill,
    ("triton", "decode"): TritonDecode,
    ("triton", "prefill"): TritonPrefill,
}

# Fields that decide the order of summation.
ORDER_FIELDS = ("chunk", "block_kv", "block_q", "num_warps", "p_in_registers")

INTERPRETER = "interpreter"  # stands for a device: a persistent grid of one program is enough

# Streaming multiprocessors, by the beginning of the device's name.
NUM_CORES = {"NVIDIA A100": 108, INTERPRETER: 1}
DEFAULT_CORES = 132  # Hopper


class Row(NamedTuple):
    """A measured choice of tiles."""

    device: str  # jax's device_kind
    implementation: str
    kind: str
    group: int
    head_dim: int
    page_size: int
    batch: int  # slots (decode) or tokens (prefill), rounded up to a power of two
    context: int  # tokens that a block table holds, rounded up to a power of two
    tiles: dict[str, Any]
    measured: dict[str, Any]  # what the tuner saw: time, bandwidth, versions


@functools.cache
def table() -> tuple[Row, ...]:
    """The rows of tuning.json.

    Raises:
      ValueError: for rows of one model and device that differ in the order of summation.
    """
    text = importlib.resources.files("pallas_kernels").joinpath("tuning.json").read_text()
    return check(tuple(Row(**row) for row in json.loads(text)["rows"]))


def check(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows, if no two of one device and model differ in what decides the order of summation."""
    orders: dict[Any, dict[str, Any]] = {}
    for row in rows:
        key = row[: Row._fields.index("batch")]
        order = {name: value for name, value in row.tiles.items() if name in ORDER_FIELDS}
        if orders.setdefault(key, order) != order:
            raise ValueError(f"tuning.json: {key} has {order} and {orders[key]}: an engine's bits need one")
    return rows


def lookup(implementation: str, problem: Problem, device_kind: str) -> Tiles:
    """The tiles for a problem: those measured for its bucket, those measured for the nearest bucket of the
    same device and model, or a rule."""
    mine = (device_kind, implementation, problem.kind, problem.group, problem.head_dim, problem.page_size)
    batch, context = bucket(problem)
    rows = [row for row in table() if row[: len(mine)] == mine]
    if rows:
        nearest = min(rows, key=lambda row: (abs(math.log2(row.batch / batch)), row.context < context))
        return TILES[implementation, problem.kind](**nearest.tiles)
    return heuristic(implementation, problem, device_kind)


def bucket(problem: Problem) -> tuple[int, int]:
    """The batch and the context of a problem's row in the table."""
    batch = problem.slots if problem.kind == "decode" else problem.tokens
    return _power_of_two(batch), _power_of_two(problem.max_len)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def heuristic(implementation: str, problem: Problem, device_kind: str) -> Tiles:
    """Tiles that compile without spills for every shape; what was not measured is a guess."""
    cores = next((n for name, n in NUM_CORES.items() if device_kind.startswith(name)), DEFAULT_CORES)
    wide = problem.head_dim > 64
    match implementation, problem.kind:
        case "mosaic", "decode":
            # A ring of 3 x 32 KB leaves room for two CTAs on a core, one of 4 x 16 KB for three; more than
            # are resident would run after the others. An item holds the chunks of a pack's heads: about 512
            # tokens of one head, beside 4 KB of partial sums.
            packed = max(1, 8 // problem.group)
            ring_and_grid = (3, 2 * cores) if wide else (4, 3 * cores)
            return MosaicDecode(max(64, 512 // packed), 64, *ring_and_grid)
        case "mosaic", "prefill":
            in_registers = device_kind != INTERPRETER  # which knows no operand in registers
            return MosaicPrefill(128, 2 if wide else 4, in_registers)
        case "triton", "decode":
            # Three stages: page ids are read one block ahead of the keys, and those one ahead of the product.
            # Up to 127 registers and 39 KB leave room for four CTAs on a core.
            return TritonDecode(512, 64, 4, 3, cores * 4)
        case "triton", "prefill":
            return TritonPrefill(64, 64, 4, 3)
        case _:
            raise ValueError(f"implementation={implementation!r} has no tiles")
