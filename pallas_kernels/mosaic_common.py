"""What the Pallas Mosaic GPU kernels (Hopper) share."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
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
