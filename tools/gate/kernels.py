"""Each kernel, compiled for a GPU that is not here: what it takes there, and what must hold of it."""

from __future__ import annotations

from typing import Any

from tools.gate import ptxas
from tools.gate.kernel_call import compile_case
from tools.gate.kernel_case import KERNELS, LARGE_POOL_BYTES, Case, declines, with_shipped_tiles
from tools.gate.target import Target

IN_PLACE = ("rotate_and_write", "write_kv", "copy_pages")
PERSISTENT = ("paged_decode",)


def measure(case: Case, target: Target) -> list[dict[str, Any]]:
    """The rows of a call's kernels, for each choice of tiles that is shipped for them."""
    try:
        reason = declines(case, target)
    except Exception as error:  # a kernel that cannot be imported
        return _rows(case, target, "failed", reason=_first_line(error))
    if reason is not None:
        return _rows(case, target, "not_claimed", reason=reason)
    return [row for shipped in with_shipped_tiles(case, target) for row in _measure(shipped, target)]


def _measure(case: Case, target: Target) -> list[dict[str, Any]]:
    try:
        compiled = compile_case(case, target)
        half = None
        if case.pool_bytes == LARGE_POOL_BYTES:
            half = compile_case(case._replace(pool_bytes=case.pool_bytes // 2), target)
    except Exception as error:  # whatever a compiler says of one kernel, the others are still of interest
        return _rows(case, target, "failed", reason=_first_line(error))
    memory = {
        "pool_bytes": compiled.pool_bytes,
        "alias_bytes": compiled.alias_bytes,
        "temp_bytes": compiled.temp_bytes,
        "temp_bytes_half_pool": half.temp_bytes if half else None,
    }
    rows = _rows(case, target, "ok", **memory)
    for row in rows:
        found = [kernel for kernel in compiled.kernels if kernel.kernel == row["kernel"]]
        if found:
            row |= _resources(found, target)
        else:
            row |= {"status": "failed", "reason": "the compilers left no report of it"}
    return rows


def _rows(case: Case, target: Target, status: str, **fields: Any) -> list[dict[str, Any]]:
    import jax

    row = {
        "implementation": case.implementation,
        "shape": case.shape,
        "page_size": case.page_size,
        "target": target.name,
        "jax": jax.__version__,
        "registers": None,
        "smem_bytes": None,
        "spill_bytes": None,
        "status": status,
        "reason": None,
        "num_pages": case.num_pages,
        "tiles": case.tiles._asdict() if case.tiles else None,
    }
    return [{"kernel": kernel, **row, **fields} for kernel in KERNELS[case.op]]


def _resources(kernels: list[ptxas.Resources], target: Target) -> dict[str, Any]:
    """Of the launches that make up a kernel: where there are several, of the one with most registers."""
    kernel = max(kernels, key=lambda kernel: kernel.registers)
    return {
        "registers": kernel.registers,
        "smem_bytes": kernel.smem_bytes,
        "spill_bytes": sum(kernel.spill_bytes for kernel in kernels),
        "threads": kernel.threads,
        "num_ctas": kernel.num_ctas,
        "ctas_per_core": ptxas.ctas_per_core(kernel, target.limits),
        "resident_ctas": ptxas.ctas_per_core(kernel, target.limits) * target.limits.num_cores,
        "launches": len(kernels),
        "remarks": sorted({remark for kernel in kernels for remark in kernel.remarks}),
    }


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What must hold of every kernel, and does not."""
    found = [f"{describe(row)}: {failure}" for row in rows for failure in row_failures(row)]
    by_problem: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        problem = (row["kernel"], row["shape"], row["page_size"])
        by_problem.setdefault(problem, set()).add(row["status"])
    for problem, statuses in by_problem.items():
        if statuses == {"not_claimed"}:
            found.append(f"{' '.join(map(str, problem))}: no implementation takes it")
    return found


def row_failures(row: dict[str, Any]) -> list[str]:
    """What is wrong with one row."""
    if row["status"] != "ok":
        return [row["reason"]] if row["status"] == "failed" else []
    found = []
    if row["spill_bytes"]:
        found.append(f"{row['spill_bytes']} bytes of registers spill")
    if row["kernel"] in IN_PLACE and row["alias_bytes"] < row["pool_bytes"]:
        found.append(f"not in place: {row['alias_bytes']} of {row['pool_bytes']} bytes alias")
    half = row["temp_bytes_half_pool"]
    if half is not None and half != row["temp_bytes"]:
        found.append(
            f"temporaries grow with the pool: {half} bytes for half of it, {row['temp_bytes']} for all"
        )
    late = row["num_ctas"] - row["resident_ctas"]  # CTAs that would run after the others
    if row["kernel"] in PERSISTENT and late > 0:
        found.append(f"a persistent grid of {row['num_ctas']} CTAs, of which {row['resident_ctas']} fit")
    if row["implementation"] == "mosaic":  # such as wgmmas that run one after the other
        found += row["remarks"]
    return found


def describe(row: dict[str, Any]) -> str:
    """A row's name."""
    return f"{row['kernel']} {row['implementation']} {row['shape']} page {row['page_size']}"
