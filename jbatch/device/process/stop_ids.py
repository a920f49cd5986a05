"""min_tokens: no stop id may be drawn before."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jbatch.device.state import Rows


def rule_out(logits: Float[Array, "draws vocab"], rows: Rows) -> Float[Array, "draws vocab"]:
    """Rule out the stop ids of rows that have not reached `min_tokens`."""
    draws, vocab = logits.shape
    banned = (rows["min_left"] > 0)[:, None] & (rows["stop_ids"] >= 0)
    ids = jnp.where(banned, rows["stop_ids"], vocab)  # out of range: dropped
    # The lowest finite number, so that who looks for non-finite logits can look at these: one copy is enough.
    return logits.at[jnp.arange(draws)[:, None], ids].set(jnp.finfo(logits.dtype).min, mode="drop")
