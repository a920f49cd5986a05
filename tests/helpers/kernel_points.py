"""The cases that implementations are tested with: combinations of what they may go wrong in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from pallas_kernels.problem import PAGE_SIZES, Kind, Problem
from tests.helpers import pairwise
from tests.helpers.attention_cases import ALIGN, Case, make_case
from tests.helpers.kernels import Kernel

MAX_HEADS = 32
TILE_ROWS = 128  # of a kernel's tile of (token, head of the group): the largest there is

# Tokens of each slot, by page size.
DECODE_LENGTHS: dict[str, Callable[[int], list[int]]] = {
    "edges": lambda page: [page - 1, 0, page, page + 1],
    "pages": lambda page: [0, 3 * page + 5, 2 * page],
    "long": lambda page: [1, 300 + page],
    "one": lambda page: [1],
}
# (queries, tokens) of each slot, by page size and the queries of a tile.
PREFILL_LENGTHS: dict[str, Callable[[int, int], list[tuple[int, int]]]] = {
    "fresh": lambda page, tile: [(tile + 1, tile + 1), (0, 0), (1, 1)],
    "chunks": lambda page, tile: [(9, page + 9), (8, 2 * page)],
    "decode": lambda page, tile: [(1, page), (1, page + 1), (0, 0), (1, 3 * page)],
    "long": lambda page, tile: [(0, 0), (tile + 6, 300)],
}


class Point(NamedTuple):
    """An attention case by name: what the cover varies."""

    kind: Kind
    group: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: str
    lengths: str
    tiles: int  # index

    def __str__(self) -> str:
        return "-".join(map(str, self[1:]))

    @property
    def case_lengths(self) -> tuple[list[int], list[int]]:
        """Queries and tokens of each slot."""
        if self.kind == "decode":
            kv_lens = DECODE_LENGTHS[self.lengths](self.page_size)
            return [min(n, 1) for n in kv_lens], kv_lens
        tile = TILE_ROWS // (1 << (self.group - 1).bit_length())
        q_lens, kv_lens = zip(*PREFILL_LENGTHS[self.lengths](self.page_size, tile), strict=True)
        return list(q_lens), list(kv_lens)

    def case(self, seed: int = 0) -> Case:
        return make_case(
            seed, *self.case_lengths, num_heads=self.group * self.kv_heads, kv_heads=self.kv_heads,
            head_dim=self.head_dim, page_size=self.page_size, dtype=self.dtype,
            decode=self.kind == "decode", loudness=2.0,
        )  # fmt: skip


def axes(kernel: Kernel, kind: Kind) -> dict[str, Sequence[Hashable]]:
    """What a kernel's cases vary in: all that any implementation takes or declines."""
    return {
        "kind": (kind,),
        "group": (1, 3, 4, 6, 8, 16),
        "kv_heads": (1, 2, 3, 8) if kind == "decode" else (1, 2, 3),  # decode may pack several into a tile
        "head_dim": (64, 80, 96, 128),
        "page_size": PAGE_SIZES,
        "dtype": ("bfloat16", "float16", "float32"),
        "lengths": tuple(DECODE_LENGTHS if kind == "decode" else PREFILL_LENGTHS),
        "tiles": tuple(range(len(kernel.tiles(kind)))),
    }


def points(kernel: Kernel, kind: Kind) -> list[Point]:
    """Every combination that the implementation takes."""
    return [Point(**row) for row in pairwise.product(axes(kernel, kind), _taken_by(kernel))]


@functools.cache
def cover(kernel: Kernel, kind: Kind) -> list[Point]:
    """Combinations that hold every pair of values which the implementation takes together."""
    return [Point(**row) for row in pairwise.cover(axes(kernel, kind), _taken_by(kernel))]


def _taken_by(kernel: Kernel) -> Callable[[Mapping[str, Any]], bool]:
    def allowed(row: Mapping[str, Any]) -> bool:
        if row["group"] * row["kv_heads"] > MAX_HEADS:
            return False
        return kernel.declines(problem_of(Point(**row))) is None

    return allowed


def problem_of(point: Point) -> Problem:
    """The static side of a case like the point's."""
    slots = 4
    return Problem(
        point.kind, point.dtype, tokens=slots if point.kind == "decode" else 8 * ALIGN, slots=slots,
        num_heads=point.group * point.kv_heads, kv_heads=point.kv_heads, head_dim=point.head_dim,
        num_pages=8, page_size=point.page_size, pages_per_seq=4,
    )  # fmt: skip


class WritePoint(NamedTuple):
    """A write of new tokens into the cache, by name."""

    kv_heads: int
    head_dim: int
    page_size: int
    dtype: str
    num_tokens: int

    def __str__(self) -> str:
        return "-".join(map(str, self))


WRITE_AXES: dict[str, Sequence[Hashable]] = {
    "kv_heads": (1, 2, 3, 8),
    "head_dim": (64, 80, 96, 128),
    "page_size": PAGE_SIZES,
    "dtype": ("bfloat16", "float16", "float32"),
    "num_tokens": (1, 8, 33),
}


@functools.cache
def write_cover() -> list[WritePoint]:
    return [WritePoint(**row) for row in pairwise.cover(WRITE_AXES)]
