"""A kernel's call compiled for a GPU that is not here, and what the compilers say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.model_dir.shapes import SHAPES
from tools.gate import ptxas
from tools.gate.kernel_case import COPIES, KERNELS, Case, problem_of
from tools.gate.target import Target, compiling, find_ptxas, thunks

SUFFIXES = {"mosaic": ptxas.MOSAIC_SUFFIX, "triton": "_triton"}  # of the compiled kernels' names


class Compiled(NamedTuple):
    """What a compiled call shows."""

    pool_bytes: int
    alias_bytes: int
    temp_bytes: int
    kernels: list[ptxas.Resources]


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
