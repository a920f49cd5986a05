"""A mask of tokens, which comes with the step: a bit for each token that may be drawn."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jbatch.seam.row_data import RULED_OUT

BITS = 32


def num_words(vocab_size: int) -> int:
    """Integers that hold a bit for each token."""
    return -(-vocab_size // BITS)


def rule_out(
    logits: Float[Array, "draws vocab"], mask: Int[Array, "draws words"]
) -> Float[Array, "draws vocab"]:
    """Rule out the tokens whose bit is 0. Token i has bit i % 32 of integer i // 32."""
    draws, vocab = logits.shape
    bits = mask[:, :, None] >> jnp.arange(BITS) & 1
    return jnp.where(bits.reshape(draws, -1)[:, :vocab] > 0, logits, RULED_OUT)
