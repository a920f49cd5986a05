"""The tests' race detector sees what it must, or the kernels' tests would pass for nothing."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels._compat import HAS_MOSAIC
from tests.helpers.kernels import interpreted, no_races

pytestmark = pytest.mark.skipif(not HAS_MOSAIC, reason=f"jax {jax.__version__} interprets no such kernel")


def fill(num_threads: int) -> jax.Array:
    """A kernel whose threads all write the same place."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def kernel(out_gmem):
        out_gmem[...] = jnp.ones((128,), jnp.float32)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((128,), jnp.float32),
        num_threads=num_threads,
        thread_name="warpgroup",
        interpret=interpreted("mosaic").interpret,
    )()


def test_a_race_is_seen_though_a_kernel_without_one_follows():
    with pytest.raises(AssertionError, match="RACE DETECTED"), no_races():
        fill(num_threads=2)
        fill(num_threads=1).block_until_ready()


def test_no_race_is_seen_where_there_is_none():
    with no_races():
        fill(num_threads=1).block_until_ready()
