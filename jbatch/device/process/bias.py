"""logit_bias and allowed_token_ids: a number for each token, added to its logit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jbatch.device.state import Rows
from jbatch.seam.row_data import unpack_row_data

FEATURE = "bias"
Bias = Float[Array, "num_rows vocab"]


def abstract(num_rows: int, vocab_size: int) -> Any:
    """Its state: the biases of each row."""
    return jax.ShapeDtypeStruct((num_rows, vocab_size), jnp.float32)


def set_row(bias: Bias, packed: Int[Array, " size"]) -> Bias:
    """Put a row's data in place; that of a row that does not exist is dropped."""
    row, bits = unpack_row_data(packed, FEATURE, bias.shape[1])
    return bias.at[row].set(lax.bitcast_convert_type(bits, jnp.float32), mode="drop")


def add(
    logits: Float[Array, "draws vocab"], rows: Rows, bias: Float[Array, "draws vocab"]
) -> Float[Array, "draws vocab"]:
    """The logits of rows that have a bias, with it; RULED_OUT absorbs them."""
    return jnp.where(rows["has_bias"][:, None] > 0, logits + bias, logits)
