"""Products with weights: one product of matrices each, in the form that a device computes fastest."""

from __future__ import annotations

import math

from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

FEW_ROWS = 128  # up to here, moving the weight costs a CPU more than multiplying it


def project(
    x: Float[Array, "..."], weight: Float[Array, "..."], num_out: int, dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """The last axes of `x` times those behind the first `num_out` of `weight`, [*out, *in]: [..., *out].

    As one product of matrices: XLA's CPU compiler copies a weight of more axes in every step.

    Args:
      dtype: of the result; by default, and for the sums inside, as `jnp.matmul` has it.
    """
    out, inner = weight.shape[:num_out], weight.shape[num_out:]
    size, batch = math.prod(inner), x.shape[: x.ndim - len(inner)]
    rows, matrix = x.reshape(-1, size), weight.reshape(-1, size)
    few = rows.shape[0] <= FEW_ROWS

    def rows_first(rows: Array, matrix: Array) -> Array:
        return _product(rows, matrix, dtype)

    def weight_first(rows: Array, matrix: Array) -> Array:
        # XLA would make one product of a product and its transpose, but for the barrier.
        return lax.optimization_barrier(_product(matrix, rows, dtype)).T

    cpu = weight_first if few else rows_first
    flat = lax.platform_dependent(rows, matrix, cpu=cpu, default=rows_first)
    return flat.reshape(*batch, *out)


def _product(
    left: Float[Array, "m inner"], right: Float[Array, "n inner"], dtype: DTypeLike | None
) -> Float[Array, "m n"]:
    """Of rows with rows. A CPU's libraries move their right operand to where they can multiply it."""
    return lax.dot_general(left, right, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
