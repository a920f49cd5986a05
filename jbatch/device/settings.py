"""JAX's settings where jbatch traces and calls: the same programs, whatever a user's environment says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

from jbatch.errors import stacklevel_of_caller

MATMUL = "jax_default_matmul_precision"


@contextmanager
def fixed_settings(float32_precision: str | None = None) -> Iterator[None]:
    """Within it, JAX traces as by its own defaults: types and ranks are promoted, 64-bit types are off,
    functions are compiled, and random numbers are threefry's, the same for each row of a batch. Of this
    thread alone.

    Args:
      float32_precision: of matrix products; None: the device's default.
    """
    with ExitStack() as stack:
        for setting in (
            jax.enable_x64(False),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            jax.default_prng_impl("threefry2x32"),
            jax.threefry_partitionable(True),
            jax.default_matmul_precision(float32_precision),
            jax.disable_jit(False),
            jax.debug_nans(False),
            jax.debug_infs(False),
        ):
            stack.enter_context(setting)
        yield


def call(program: Callable[..., Any], *arguments: Any) -> Any:
    """Run a compiled program, also where a user has JAX compile nothing, or look for NaN after each call:
    here a NaN is its own request's error, and ends no step."""
    config: Any = jax.config
    if config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs:
        with fixed_settings():
            return program(*arguments)
    return program(*arguments)


def call_together(program: Callable[..., Any], *arguments: Any) -> Any:
    """`call`, of a program of several devices of a CPU: they wait for one another on threads of one pool, and
    with two programs under way each could hold the threads that the other needs."""
    return jax.block_until_ready(call(program, *arguments))


def warn_of_what_is_fixed() -> None:
    """Say so where a user has set how precise matrix products are: in jbatch their dtype says it, float32 in
    full, or a job's texts would depend on who runs it."""
    precision = jax.config.values.get(MATMUL)
    if precision is not None:
        warnings.warn(
            f"{MATMUL}={precision!r} has no effect on jbatch: matrix products in float32 are exact, and "
            "those in bfloat16 and float16 are the device's own",
            stacklevel=stacklevel_of_caller(),
        )
