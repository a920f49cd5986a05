"""Each kernel, compiled for a GPU that is not here, and what it takes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jbatch.model_dir.shapes import SHAPES
from pallas_kernels.names import COMPILERS, ROTATES
from tools.gate import ptxas
from tools.gate.target import Target, compiling, find_ptxas, thunks

if TYPE_CHECKING:
    from pallas_kernels.problem import Kind, Problem
    from pallas_kernels.tuning import Tiles

PAGE_SIZES = (16, 64)
SLOTS, MAX_LEN = 64, 8192
TOKENS = 2048  # of a prefill step, and of its cache write
COPIES = 64
POOL_BYTES = 2**30  # of a layer
LARGE_POOL_BYTES = 7_800_000_000  # of one of a 1B model's 16 layers on an H200: 3.9e9 elements
LARGE_SHAPE, LARGE_PAGE_SIZE = "llama3.2-1b", 64

# The kernels of an op, and who has one. XLA's attention is no kernel.
KERNELS = {
    "decode": ("paged_decode", "paged_decode_combine"),
    "prefill": ("paged_prefill",),
    "rotate": ("rotate_and_write",),
    "write": ("write_kv",),
    "copy": ("copy_pages",),
}
IMPLEMENTATIONS = {
    "decode": COMPILERS,
    "prefill": COMPILERS,
    "rotate": (ROTATES,),
    "write": ("xla",),
    "copy": ("xla",),
}
# One shape of each head_dim per op, the larger one's with a group of its own. A step brings the other groups.
QUICK_SHAPES = {
    "decode": "llama3-70b",
    "prefill": "llama3.2-3b",
    "rotate": "llama3-8b",
    "write": "llama2-7b",
    "copy": "llama3-8b",
}
IN_PLACE = ("rotate_and_write", "write_kv", "copy_pages")
PERSISTENT = ("paged_decode",)
SUFFIXES = {"mosaic": ptxas.MOSAIC_SUFFIX, "triton": "_triton"}  # of the compiled kernels' names


class Case(NamedTuple):
    """A call to compile."""

    op: str
    implementation: str
    shape: str
    page_size: int
    pool_bytes: int
    tiles: Tiles | None = None
    batch: int = SLOTS  # slots of decode; tokens of the others

    @property
    def name(self) -> str:
        large = " large" if self.pool_bytes > 2**32 else ""
        return f"{self.op} {self.implementation} {self.shape} page {self.page_size}{large}"

    @property
    def num_pages(self) -> int:
        shape = SHAPES[self.shape]
        return self.pool_bytes // (2 * shape.num_kv_heads * self.page_size * shape.head_dim * 2)


class Compiled(NamedTuple):
    """What a compiled call shows."""

    pool_bytes: int
    alias_bytes: int
    temp_bytes: int
    kernels: list[ptxas.Resources]


def cases() -> list[Case]:
    """All calls, also over a pool whose places no int32 can count."""
    found = []
    for op, implementations in IMPLEMENTATIONS.items():
        batch = SLOTS if op == "decode" else TOKENS
        for implementation in implementations:
            for shape in SHAPES:
                for page_size in PAGE_SIZES:
                    found.append(Case(op, implementation, shape, page_size, POOL_BYTES, batch=batch))
            found.append(
                Case(op, implementation, LARGE_SHAPE, LARGE_PAGE_SIZE, LARGE_POOL_BYTES, batch=batch)
            )
    return found


def covering(cases: list[Case]) -> list[Case]:
    """Each op, implementation and head_dim once, with both page sizes; 64 dimensions over the large pool."""
    return [
        case
        for case in cases
        if case.pool_bytes == LARGE_POOL_BYTES
        or (case.shape == QUICK_SHAPES[case.op] and case.page_size != LARGE_PAGE_SIZE)
    ]


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


def declines(case: Case, target: Target) -> str | None:
    """Why an implementation does not take a case on the target, or None."""
    from pallas_kernels import implementations

    return implementations.declines(case.implementation, problem_of(case), target.device)


def problem_of(case: Case) -> Problem:
    """The attention problem of a case."""
    from pallas_kernels.problem import Problem

    shape = SHAPES[case.shape]
    slots = case.batch if case.op == "decode" else SLOTS
    kinds: dict[str, Kind] = {"decode": "decode", "rotate": "rotate"}
    return Problem(
        kinds.get(case.op, "prefill"),
        "bfloat16",
        tokens=case.batch,
        slots=slots,
        num_heads=shape.num_heads,
        kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        num_pages=case.num_pages,
        page_size=case.page_size,
        pages_per_seq=MAX_LEN // case.page_size,
    )


def with_shipped_tiles(case: Case, target: Target) -> list[Case]:
    """The case with the tiles that `tuning` has for it, and with those of the table's rows for other
    batches of the same device and model."""
    from pallas_kernels import tuning

    if case.op not in ("decode", "prefill"):
        return [case]
    problem = problem_of(case)
    device = target.device.device_kind
    chosen = tuning.lookup(case.implementation, problem, device)
    key = (device, case.implementation, problem.kind, problem.group, problem.head_dim, problem.page_size)
    others = {
        tuning.tiles_of(case.implementation, problem.kind, row.tiles): row.batch
        for row in tuning.table()
        if row[: len(key)] == key
    }
    others.pop(chosen, None)
    found = [case._replace(tiles=chosen)]
    return found + [case._replace(tiles=tiles, batch=batch) for tiles, batch in others.items()]


def compile_case(case: Case, target: Target) -> Compiled:
    """Compile a call for the target."""
    import jax

    function, arguments = call(case, target)
    donated = 0 if case.op in ("rotate", "write", "copy") else ()
    with compiling(target, mosaic_dump=case.implementation == "mosaic"):
        compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
    memory: Any = compiled.memory_analysis()
    shape = SHAPES[case.shape]
    page_bytes = 2 * shape.num_kv_heads * case.page_size * shape.head_dim * 2
    return Compiled(
        case.num_pages * page_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        list(_kernels(case, target)),
    )


def call(case: Case, target: Target) -> tuple[Callable[..., Any], list[Any]]:
    """A function of the library's interface, and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import copy_pages, paged_decode, paged_prefill, rotate_and_write, write_kv

    problem = problem_of(case)
    sharding = jax.sharding.SingleDeviceSharding(target.device)

    def array(*dims: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    def ints(*dims: int) -> jax.ShapeDtypeStruct:
        return array(*dims, dtype=jnp.int32)

    q = array(problem.tokens, problem.num_heads, problem.head_dim)
    kv_pages = array(problem.num_pages, 2, problem.kv_heads, problem.page_size, problem.head_dim)
    tables, lens = ints(problem.slots, problem.pages_per_seq), ints(problem.slots)
    new = array(problem.tokens, problem.kv_heads, problem.head_dim)
    options = {"scale": problem.head_dim**-0.5, "tiles": case.tiles, "implementation": case.implementation}

    match case.op:
        case "decode":
            return lambda *args: paged_decode(*args, **options), [q, kv_pages, tables, lens]
        case "prefill":
            return lambda *args: paged_prefill(*args, **options), [q, kv_pages, tables, lens, lens, lens]
        case "rotate":
            qkv = array(problem.tokens, problem.kv_heads, problem.group + 2, problem.head_dim)
            turn = array(problem.tokens, problem.head_dim // 2, dtype=jnp.float32)
            rotate = lambda *args: rotate_and_write(*args, implementation=case.implementation)  # noqa: E731
            return rotate, [kv_pages, qkv, turn, turn, ints(problem.tokens), ints(problem.tokens)]
        case "write":
            places = [ints(problem.tokens), ints(problem.tokens)]
            return lambda *args: write_kv(*args), [kv_pages, new, new, *places]
        case _:
            return lambda *args: copy_pages(*args), [kv_pages, ints(COPIES), ints(COPIES)]


def _kernels(case: Case, target: Target) -> Iterator[ptxas.Resources]:
    """What the compilers left: Mosaic its own files, XLA the PTX of its fusions and of Triton's kernels."""
    if case.implementation == "mosaic":
        for report, launch in ptxas.mosaic_kernels(target.dump, target.mosaic_reports):
            yield ptxas.Resources.of(_named(report, case), launch)
        return
    launches = ptxas.xla_launches(thunks(target))
    for file in sorted(target.dump.glob("module_*.ptx")):
        name = ptxas.entry_name(file.read_text())
        if name in launches and _is_own(name, case):
            for report in ptxas.run(find_ptxas(), Path(file)):
                yield ptxas.Resources.of(_named(report, case), launches[name])


def _is_own(kernel: str, case: Case) -> bool:
    """Whether a kernel is the case's own: in a program with Triton's, the others make the work list."""
    return case.implementation == "xla" or kernel.endswith(SUFFIXES["triton"])


def _named(report: ptxas.Report, case: Case) -> ptxas.Report:
    if case.implementation == "xla":
        return report._replace(kernel=KERNELS[case.op][0])
    return report._replace(kernel=report.kernel.removesuffix(SUFFIXES[case.implementation]))


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
