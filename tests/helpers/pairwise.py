"""A small set of combinations in which every pair of values occurs: most faults need no more than two."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def product(axes: Mapping[str, Sequence[Hashable]], allowed: Callable[[Row], bool]) -> list[Row]:
    """All allowed combinations of one value of each axis."""
    rows = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return [row for row in rows if allowed(row)]


def pairs(row: Row) -> list[tuple[Hashable, Hashable]]:
    """The pairs of (axis, value) in a combination, in the axes' order."""
    return list(itertools.combinations(row.items(), 2))


def cover(
    axes: Mapping[str, Sequence[Hashable]],
    allowed: Callable[[Row], bool] = lambda row: True,
    *,
    seed: int = 0,
    tries: int = 8,
) -> list[Row]:
    """Combinations that hold every pair of values that an allowed one holds: the smallest of some tries."""
    rows_with: dict[Any, list[Row]] = {}
    for row in product(axes, allowed):
        for pair in pairs(row):
            rows_with.setdefault(pair, []).append(row)
    return min((_greedy(rows_with, random.Random(seed + i)) for i in range(tries)), key=len)


def _greedy(rows_with: Mapping[Any, list[Row]], rng: random.Random, candidates: int = 200) -> list[Row]:
    """The next row is the best of some that hold a pair which is still missing."""
    missing = dict.fromkeys(rows_with)  # ordered: the answer must not depend on hashes of strings
    chosen: list[Row] = []
    while missing:
        rows = rows_with[rng.choice(list(missing))]
        some = rng.sample(rows, min(candidates, len(rows)))
        best = max(some, key=lambda row: sum(pair in missing for pair in pairs(row)))
        chosen.append(best)
        for pair in pairs(best):
            missing.pop(pair, None)
    return chosen
