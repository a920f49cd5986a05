"""Devices that compute one step together, as each of them sees it from inside of the step."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

AXIS = "tp"  # of the mesh


@dataclasses.dataclass(frozen=True)
class Ranks:
    """How many devices hold a part of the model each, and how they make a whole of their parts. All have the
    same tokens, and the same hidden states between two layers. One device alone exchanges nothing."""

    size: int = 1

    def sum(self, part: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The sum of all ranks' parts: an all-reduce."""
        return part if self.size == 1 else lax.psum(part, AXIS)

    def join(self, part: Float[Array, "*n columns"], num_columns: int) -> Float[Array, "*n vocab"]:
        """All ranks' columns, one rank's behind the other's: an all-gather. What is behind the first
        `num_columns` is padding, and dropped."""
        if self.size == 1:
            return part
        return lax.all_gather(part, AXIS, axis=part.ndim - 1, tiled=True)[..., :num_columns]

    def look_up(self, rows: Float[Array, "rows embed"], ids: Int[Array, "*n"]) -> Float[Array, "*n embed"]:
        """The rows `ids` of a table, of which each rank has as many as any other, in order."""
        if self.size == 1:
            return rows[ids]
        own_ids = ids - lax.axis_index(AXIS) * rows.shape[0]
        is_own = (own_ids >= 0) & (own_ids < rows.shape[0])
        return self.sum(jnp.where(is_own[..., None], rows[jnp.where(is_own, own_ids, 0)], 0))


ALONE = Ranks()
