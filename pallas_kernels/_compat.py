"""What differs between the versions of JAX, in one place."""

from __future__ import annotations

from typing import Any

import jax

JAX_VERSION = jax.__version_info__[:2]

# Mosaic GPU of jax 0.10 has no transposed wgmma operand and no transposed store to swizzled memory.
HAS_MOSAIC = JAX_VERSION >= (0, 11)


def mosaic_interpret(interpret: Any) -> Any:
    """What `plgpu.kernel(interpret=)` takes, for True or False; interpreter parameters stay as they are."""
    if not isinstance(interpret, bool):
        return interpret
    if not interpret:
        return None
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams()  # type: ignore[attr-defined]  # not in 0.10


def store_to_global(ref: Any, x: Any) -> None:
    """Store an array as its threads hold it. From jax 0.12 on, a plain store to global memory is refused
    where it does not fill whole cache lines; before, there was no other."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if hasattr(plgpu, "store"):
        plgpu.store(ref, x, optimized=False)
    else:
        ref[...] = x
