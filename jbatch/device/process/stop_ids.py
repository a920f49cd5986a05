"""min_tokens: no stop id may be drawn before."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from jbatch.device.state import Rows


def rule_out(logits: Float[Array, "draws vocab"], rows: Rows) -> Float[Array, "draws vocab"]:
    """Rule out the stop ids of rows that have not reached `min_tokens`."""
    banned = (rows["min_left"] > 0)[:, None]
    ids = jnp.where(banned, rows["stop_ids"], -1)  # no token's
    # Compared, id by id: the kernel that looks for the largest logit can do that on its way, where a scatter
    # would be one before it.
    token = jnp.arange(logits.shape[-1])
    is_stop = functools.reduce(jnp.logical_or, [token == ids[:, [idx]] for idx in range(ids.shape[1])])
    # The lowest finite number, so that who looks for non-finite logits can look at these: one copy is enough.
    return jnp.where(is_stop, jnp.finfo(logits.dtype).min, logits)
