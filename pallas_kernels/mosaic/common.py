"""What the Pallas Mosaic GPU kernels (Hopper) share."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

PIECE = 64  # rows and columns


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
        cls,
        shape: tuple[int, int, int],
        dtype: DTypeLike,
        *,
        num_copies: int,
        num_readers: int,
        spare_barriers: int = 0,
    ) -> Ring:
        """What to allocate, for blocks of `num_copies` copies. Spare barriers follow those of `ready`."""
        return cls(
            swizzled_smem(shape, dtype),
            plgpu.Barrier(num_arrivals=num_copies, num_barriers=shape[0] + spare_barriers),
            plgpu.Barrier(num_arrivals=num_readers, num_barriers=shape[0]),
        )

    def drain(self, num_used: Any) -> None:
        """Await the last readers: a barrier must not be left with an arrival that nobody awaited."""
        for stage in range(self.smem.shape[0]):
            pl.when(stage < num_used)(functools.partial(plgpu.barrier_wait, self.free.at[stage]))


def clear_rows(smem: Any, num_live: Any) -> None:
    """Zeros from row `num_live` on: 0 x NaN of an earlier owner is NaN. In pieces, for want of registers."""
    num_rows, num_columns = smem.shape
    row = plgpu.broadcasted_iota(jnp.int32, (PIECE, PIECE), 0, layout=plgpu.Layout.WGMMA)
    for first in range(0, num_rows, PIECE):
        for column in range(0, num_columns, PIECE):
            piece = (pl.ds(first, PIECE), pl.ds(column, PIECE))
            x = smem[piece]
            smem[piece] = jnp.where(row + first < num_live, x, jnp.zeros_like(x))
    plgpu.commit_smem()
