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

from pallas_kernels import implementations
from pallas_kernels.names import COMPILERS
from pallas_kernels.problem import Kind, Problem

Tiles = Any  # a named tuple: the `Tiles` of a kernel's file

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
        return tiles_of(implementation, problem.kind, nearest.tiles)
    return default_tiles(implementation, problem, device_kind)


def tiles_of(implementation: str, kind: Kind, fields: dict[str, Any]) -> Tiles:
    """A kernel's tiles from their fields by name, as a row of the table has them.

    Raises:
      TypeError: for fields that are not those of the kernel's tiles.
    """
    return implementations.module(implementation, kind).Tiles(**fields)


def bucket(problem: Problem) -> tuple[int, int]:
    """The batch and the context of a problem's row in the table."""
    batch = problem.slots if problem.kind == "decode" else problem.tokens
    return _power_of_two(batch), _power_of_two(problem.max_len)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def default_tiles(implementation: str, problem: Problem, device_kind: str) -> Tiles:
    """Tiles that compile without spills for every shape, by the kernel's own rule; what was not measured is
    a guess.

    Raises:
      ValueError: for an implementation that is no kernel.
    """
    if implementation not in COMPILERS:
        raise ValueError(f"implementation={implementation!r} has no tiles")
    kernel = implementations.module(implementation, problem.kind)
    return kernel.default_tiles(problem, num_cores(device_kind), device_kind == INTERPRETER)


def num_cores(device_kind: str) -> int:
    """Streaming multiprocessors of a device."""
    return next((cores for name, cores in NUM_CORES.items() if device_kind.startswith(name)), DEFAULT_CORES)
