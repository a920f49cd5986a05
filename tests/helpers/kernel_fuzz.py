"""Random attention cases of few sizes: what varies is all that a compiled program takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pallas_kernels.problem import Kind
from tests.helpers.attention_cases import ALIGN, Case, Room, make_case
from tests.helpers.kernel_checks import check_case
from tests.helpers.kernels import Kernel


class Family(NamedTuple):
    """Sizes that random cases share, so that few programs are compiled for many of them."""

    group: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: str
    tiles: int


FAMILIES = (
    Family(group=4, kv_heads=2, head_dim=64, page_size=16, dtype="bfloat16", tiles=0),
    Family(group=1, kv_heads=3, head_dim=64, page_size=32, dtype="float16", tiles=1),
    Family(group=6, kv_heads=1, head_dim=128, page_size=16, dtype="float16", tiles=2),
)
SLOTS, PAGES, PAGES_PER_SEQ, TOKENS = 4, 13, 7, 96


def check_fuzz(kernel: Kernel, kind: Kind, seed: int, index: int) -> None:
    """A random case: lengths, shared pages, gaps between the packed queries, sharpness of the softmax."""
    family = FAMILIES[index % len(FAMILIES)]
    case = fuzz_case(kind, family, np.random.default_rng([seed, index]))
    tiles = kernel.tiles(kind)
    try:
        check_case(kernel, kind, case, tiles[family.tiles % len(tiles)])
    except Exception as error:
        lengths = f"q_starts {case.q_starts}, q_lens {case.q_lens}, kv_lens {case.kv_lens}"
        raise AssertionError(f"seed {seed}, index {index}, {family}: {lengths}: {error}") from error


def fuzz_case(kind: Kind, family: Family, rng: np.random.Generator) -> Case:
    """A case of the family's sizes."""
    kv_lens = _random_lengths(family.page_size, rng)
    if kind == "decode":
        q_lens, starts = [min(n, 1) for n in kv_lens], list(range(SLOTS))
    else:
        q_lens, starts = _random_queries(kv_lens, rng)
    return make_case(
        rng.integers(2**32), q_lens, kv_lens, num_heads=family.group * family.kv_heads,
        kv_heads=family.kv_heads, head_dim=family.head_dim, page_size=family.page_size, dtype=family.dtype,
        decode=kind == "decode", loudness=rng.choice([0.1, 1.0, 4.0]), shared_pages=rng.integers(3),
        q_starts=starts, room=Room(SLOTS if kind == "decode" else TOKENS, PAGES, PAGES_PER_SEQ),
    )  # fmt: skip


def _random_lengths(page_size: int, rng: np.random.Generator) -> list[int]:
    """Of sequences that the pages hold, often at the edge of a page, often 0."""
    lengths, free = [], PAGES - 1  # without the null page
    for _ in range(SLOTS):
        num_pages = rng.integers(min(free, PAGES_PER_SEQ) + 1)
        free -= num_pages
        off_edge = rng.choice([0, 1, page_size - 1, rng.integers(page_size)])
        lengths.append(int(max(0, num_pages * page_size - off_edge)))
    return [lengths[i] for i in rng.permutation(SLOTS)]


def _random_queries(kv_lens: Sequence[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """How many queries each slot has, and where they start: in any order, with gaps."""
    room = TOKENS // SLOTS  # of each slot on average
    q_lens, starts, used = [0] * SLOTS, [0] * SLOTS, 0
    for turn, slot in enumerate(rng.permutation(SLOTS)):
        most = min(kv_lens[slot], (turn + 1) * room - used)
        q_lens[slot] = int(rng.choice([most, min(1, most), rng.integers(most + 1)]))
        starts[slot] = used
        used += -(-q_lens[slot] // ALIGN) * ALIGN
        used += ALIGN * int(rng.integers(2) and used < (turn + 1) * room)
    return q_lens, starts
