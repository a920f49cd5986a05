"""What the Pallas Mosaic GPU kernels (Hopper) share."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

LOG2E = math.log2(math.e)  # exp(x) = exp2(x * LOG2E), and the GPU has an instruction for exp2

NEG_INF = -1e30  # finite: inf - inf would be NaN where a row has seen no key yet


def swizzled_smem(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Shared memory that TMA fills and wgmma reads, in the widest swizzle that the last dimension allows."""
    element_bits = jnp.dtype(dtype).itemsize * 8
    swizzle = plgpu.find_swizzle(shape[-1] * element_bits)
    tiling = plgpu.TilingTransform((8, 8 * swizzle // element_bits))
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(swizzle)))


class Ring(NamedTuple):
    """Blocks of keys or values in shared memory: one warpgroup copies them in, others read them."""

    smem: Any  # [stages, block_kv, head_dim]
    ready: Any  # barriers: a block has arrived
    free: Any  # all readers are done with it

    @classmethod
    def scratch(
        cls, shape: tuple[int, int, int], dtype: DTypeLike, *, num_copies: int, num_readers: int
    ) -> Ring:
        """What to allocate, for blocks that arrive in `num_copies` copies."""
        return cls(
            swizzled_smem(shape, dtype),
            plgpu.Barrier(num_arrivals=num_copies, num_barriers=shape[0]),
            plgpu.Barrier(num_arrivals=num_readers, num_barriers=shape[0]),
        )

    def drain(self, num_used: Any) -> None:
        """Await the last readers: a barrier must not be left with an arrival that nobody awaited."""
        for stage in range(self.smem.shape[0]):
            pl.when(stage < num_used)(functools.partial(plgpu.barrier_wait, self.free.at[stage]))
