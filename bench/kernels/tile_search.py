"""Which tiles to try, which to take of those that were measured, and the table that they go to."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pallas_kernels import tuning
from pallas_kernels.problem import Problem
from pallas_kernels.tuning import ORDER_FIELDS, Tiles

Measured = dict[Tiles, dict[str, Any]]  # of one problem, with "us" and "floor_us"
Order = tuple[tuple[str, Any], ...]


def tiles_to_try(implementation: str, problem: Problem, device_kind: str, limit: int | None) -> list[Tiles]:
    """All combinations of some values of each field, those of the rule first; chunks are whole blocks.

    Args:
      limit: values per field, at most.
    """
    rule = tuning.default_tiles(implementation, problem, device_kind)
    cores = tuning.num_cores(device_kind)
    fields = rule._asdict()
    others: dict[str, tuple[Any, ...]] = {
        "chunk": (2 * fields.get("chunk", 0), fields.get("chunk", 0) // 2),
        "block_q": (64, 128),
        "block_kv": (64, 128),
        "num_warps": (4, 8),
        "p_in_registers": (True, False),
        "num_stages": (3, 2, 4),
        "num_ctas": (2 * cores, 4 * cores, cores),
    }
    values = [tuple(dict.fromkeys((value, *others[name])))[:limit] for name, value in fields.items()]
    combinations = [type(rule)(*chosen) for chosen in itertools.product(*values)]
    return [tiles for tiles in combinations if getattr(tiles, "chunk", 0) % tiles.block_kv == 0]


def choose(measured: Sequence[Measured]) -> list[Tiles]:
    """The tiles of each problem, which share an order of summation; none where no order works for all."""
    orders = list(dict.fromkeys(order_of(tiles) for times in measured for tiles in times))
    best: dict[Order, list[Tiles]] = {}
    for order in orders:
        mine = [[tiles for tiles in times if order_of(tiles) == order] for times in measured]
        if all(mine):
            best[order] = [
                min(some, key=lambda tiles: times[tiles]["us"])
                for some, times in zip(mine, measured, strict=True)
            ]

    def cost(order: Order) -> float:
        pairs = zip(best[order], measured, strict=True)
        return sum(math.log(times[tiles]["us"] / times[tiles]["floor_us"]) for tiles, times in pairs)

    return best[min(best, key=cost)] if best else []


def order_of(tiles: Tiles) -> Order:
    """The fields of the tiles that decide the order of summation."""
    return tuple((name, value) for name, value in tiles._asdict().items() if name in ORDER_FIELDS)


def rewrite(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows into the table in place of those of the same device, kernel and model, checked and sorted.

    Raises:
      ValueError: where the table would then hold two orders of summation for one model.
    """
    table: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"schema": 1, "rows": []}
    model = tuning.Row._fields[: tuning.Row._fields.index("batch")]
    replaced = {tuple(row[field] for field in model) for row in rows}
    kept = [row for row in table["rows"] if tuple(row[field] for field in model) not in replaced]
    merged = sorted(
        [*kept, *rows], key=lambda row: [str(row[f]).zfill(9) for f in (*model, "batch", "context")]
    )
    tuning.check(tuple(tuning.Row(**row) for row in merged))
    for row in merged:
        tuning.tiles_of(row["implementation"], row["kind"], row["tiles"])
    lines = ",\n".join("  " + json.dumps(row) for row in merged)
    path.write_text(f'{{"schema": 1, "rows": [\n{lines}\n]}}\n')
