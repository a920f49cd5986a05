"""The kernels' calls that the gate compiles: each op and implementation, over every shape and page size."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from jbatch.model_dir.shapes import SHAPES
from pallas_kernels.names import COMPILERS, ROTATES
from tools.gate.target import Target

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
