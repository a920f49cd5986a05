"""The ops of `pallas_kernels` as the tests run them: on this machine's GPU, or interpreted."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from pallas_kernels import _compat, implementations, names, tuning, work_list
from pallas_kernels.mosaic import decode as mosaic_decode
from pallas_kernels.mosaic import prefill as mosaic_prefill
from pallas_kernels.problem import Kind, Problem
from pallas_kernels.triton import decode as triton_decode
from pallas_kernels.triton import prefill as triton_prefill
from tests.helpers.attention_cases import Case

NAMES = tuple(reversed(names.NAMES))  # the quickest to test first

# Chunks of one block and of several, a ring of two stages and of more than a chunk fills, and grids of one
# program, of several, and of more than there is work for.
TILES: dict[tuple[str, Kind], tuple[tuning.Tiles, ...]] = {
    ("mosaic", "decode"): (
        mosaic_decode.Tiles(chunk=64, block_kv=64, num_stages=2, num_ctas=1),
        mosaic_decode.Tiles(chunk=128, block_kv=64, num_stages=3, num_ctas=2),
        mosaic_decode.Tiles(chunk=256, block_kv=128, num_stages=2, num_ctas=3),
        mosaic_decode.Tiles(chunk=64, block_kv=64, num_stages=4, num_ctas=7),
    ),
    ("mosaic", "prefill"): (
        mosaic_prefill.Tiles(block_kv=64, num_stages=2, p_in_registers=False),
        mosaic_prefill.Tiles(block_kv=128, num_stages=2, p_in_registers=False),
        mosaic_prefill.Tiles(block_kv=64, num_stages=3, p_in_registers=False),
    ),
    ("triton", "decode"): (
        triton_decode.Tiles(chunk=32, block_kv=32, num_warps=4, num_stages=2, num_ctas=1),
        triton_decode.Tiles(chunk=96, block_kv=16, num_warps=2, num_stages=3, num_ctas=3),
        triton_decode.Tiles(chunk=128, block_kv=64, num_warps=4, num_stages=2, num_ctas=2),
        triton_decode.Tiles(chunk=64, block_kv=64, num_warps=8, num_stages=3, num_ctas=100),
    ),
    ("triton", "prefill"): (
        triton_prefill.Tiles(block_q=16, block_kv=32, num_warps=4, num_stages=2),
        triton_prefill.Tiles(block_q=64, block_kv=64, num_warps=4, num_stages=3),
        triton_prefill.Tiles(block_q=128, block_kv=16, num_warps=8, num_stages=2),
    ),
}
IN_REGISTERS = (  # not interpretable
    mosaic_prefill.Tiles(block_kv=64, num_stages=2, p_in_registers=True),
    mosaic_prefill.Tiles(block_kv=128, num_stages=2, p_in_registers=True),
)


class Kernel(NamedTuple):
    """An implementation and how it is run."""

    name: str
    interpret: Any = False

    def tiles(self, kind: Kind) -> tuple[tuning.Tiles | None, ...]:
        """Those to test with."""
        if self.name == "xla":
            return (None,)
        more = IN_REGISTERS if (self.name, kind, self.interpret) == ("mosaic", "prefill", False) else ()
        return TILES[self.name, kind] + more

    def decode(
        self, case: Case, tiles: tuning.Tiles | None = None, *, max_items: int | None = None
    ) -> np.ndarray:
        """[slots, heads, head_dim], float64; `max_items`: the length of the work list, if not the usual."""
        run = _decode(self, tiles, case.scale, max_items)
        return self._run(run, *_cache(case), *map(jnp.asarray, (case.block_tables, case.kv_lens)))

    def prefill(self, case: Case, tiles: tuning.Tiles | None = None) -> np.ndarray:
        """[tokens, heads, head_dim], float64."""
        ragged = (case.block_tables, case.q_starts, case.q_lens, case.kv_lens)
        return self._run(_prefill(self, tiles, case.scale), *_cache(case), *map(jnp.asarray, ragged))

    def declines(self, problem: Problem) -> str | None:
        """Why it does not take a problem, or None."""
        return implementations.declines(self.name, problem)

    def _run(self, function: Any, *arrays: jax.Array) -> np.ndarray:
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.default_matmul_precision("highest"))  # or a GPU computes float32 in TF32
            if self.interpret and self.name == "mosaic":
                stack.enter_context(no_races())
            return np.asarray(function(*arrays), np.float64)


def interpreted(name: str) -> Kernel:
    """An implementation, run by an interpreter where it needs one; Mosaic's looks for data races."""
    if name == "mosaic":
        from jax.experimental.pallas import mosaic_gpu as plgpu

        return Kernel(name, plgpu.InterpretGPUParams(detect_races=True))
    return Kernel(name, name == "triton")


def uninterpretable(name: str) -> str | None:
    """Why an implementation cannot be interpreted here, or None."""
    if name == "mosaic" and not _compat.HAS_MOSAIC:
        return f"jax {jax.__version__} cannot interpret the Mosaic kernels: they need 0.11"
    return None


def on_device(device: jax.Device) -> list[Kernel]:
    """The implementations that run on a device as they are."""
    able = [n for n in NAMES if n == "xla" or implementations.declines_device(n, device) is None]
    return [Kernel(name) for name in able if name != "mosaic" or _compat.HAS_MOSAIC]


@contextlib.contextmanager
def no_races() -> Iterator[None]:
    """Fail on any data race that Mosaic's interpreter reports.

    From jax 0.12 on it stops at the first. Before, it prints each; what it keeps is of the last kernel only,
    and an op may run several.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)  # NaN in dead places
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            assert "RACE" not in str(error), str(error)
            raise
    assert "RACE" not in printed.getvalue(), printed.getvalue()


def _cache(case: Case) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(case.q, case.dtype), jnp.asarray(case.kv_pages, case.dtype)


@functools.cache
def _decode(kernel: Kernel, tiles: Any, scale: float, max_items: int | None) -> Any:
    def decode(q, kv_pages, block_tables, kv_lens):
        work = None
        if max_items is not None:
            work = work_list.make_decode_work(kv_lens, chunk=tiles.chunk, max_items=max_items)
        options = {"implementation": kernel.name, "interpret": kernel.interpret, "tiles": tiles, "work": work}
        return pallas_kernels.paged_decode(q, kv_pages, block_tables, kv_lens, scale=scale, **options)

    return jax.jit(decode, compiler_options=_compiler_options())


@functools.cache
def _prefill(kernel: Kernel, tiles: Any, scale: float) -> Any:
    options = {"implementation": kernel.name, "interpret": kernel.interpret, "tiles": tiles}
    prefill = functools.partial(pallas_kernels.paged_prefill, scale=scale, **options)
    return jax.jit(prefill, compiler_options=_compiler_options())


def _compiler_options() -> dict[str, int]:
    """On a CPU, optimise little: of a small program that runs once, compiling is most of the time."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
