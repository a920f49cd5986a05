"""What steps report of logits: log-probabilities, as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jbatch.sampling_params import MAX_LOGPROB_TOKEN_IDS, MAX_LOGPROBS
from jbatch.seam.row_data import RULED_OUT, unpack_row_data
from jbatch.seam.step_output import Logprobs

FEATURE = "logprob_ids"
PROMPT_BLOCK = 128  # positions of a prompt whose logits are in memory at once
BLOCK = 128  # tokens of the vocabulary; those of the likeliest blocks are sorted, and not all
Ids = Int[Array, "num_rows ids"]


def abstract(num_rows: int, vocab_size: int) -> Any:
    """Its state: the ids to report of each row."""
    return jax.ShapeDtypeStruct((num_rows, MAX_LOGPROB_TOKEN_IDS), jnp.int32)


def set_row(ids: Ids, packed: Int[Array, " size"]) -> Ids:
    """Put a row's data in place; that of a row that does not exist is dropped."""
    row, row_ids = unpack_row_data(packed, FEATURE, 0)
    return ids.at[row].set(row_ids, mode="drop")


def report(
    logits: Float[Array, "n vocab"], tokens: Int[Array, " n"], ids: Int[Array, "n ids"] | None = None
) -> Logprobs[jax.Array]:
    """Log-probabilities of one token per position, of the likeliest ones, and of `ids`."""
    logprobs = jax.nn.log_softmax(logits)
    of_token = jnp.take_along_axis(logprobs, tokens[:, None], axis=1)
    rank = 1 + jnp.sum(logprobs > of_token, axis=-1)
    top_logprobs, top_ids = largest(logprobs, min(MAX_LOGPROBS, logits.shape[1]))
    missing = ((0, 0), (0, MAX_LOGPROBS - top_ids.shape[1]))  # of a vocabulary that is smaller
    by_id = of_token[:, :0] if ids is None else jnp.take_along_axis(logprobs, jnp.maximum(ids, 0), axis=1)
    return Logprobs(
        logprob=of_token[:, 0],
        rank=rank.astype(jnp.int32),
        top_ids=jnp.pad(top_ids.astype(jnp.int32), missing, constant_values=-1),
        top_logprobs=jnp.pad(top_logprobs, missing),
        by_id=by_id,
    )


def report_drawn(
    logits: Float[Array, "n vocab"], tokens: Int[Array, " n"], ids: Int[Array, "n ids"]
) -> Logprobs[jax.Array]:
    """`report` of logits that tokens were drawn from; -inf, which leaves one out, is its log-probability."""
    # Finite until the likeliest are found: -inf is what a vocabulary is padded with there.
    reported = report(jnp.maximum(logits, RULED_OUT), tokens, ids)

    def left_out(values: jax.Array) -> jax.Array:
        return jnp.where(values <= RULED_OUT / 2, -jnp.inf, values)

    return reported._replace(
        logprob=left_out(reported.logprob),
        top_logprobs=left_out(reported.top_logprobs),
        by_id=left_out(reported.by_id),
    )


def report_targets(
    logits_of: Callable[[Float[Array, "n embed"]], Float[Array, "n vocab"]],
    hidden: Float[Array, "tokens embed"],
    targets: Int[Array, " tokens"],
) -> Logprobs[jax.Array]:
    """Log-probabilities of each position's target and of the likeliest tokens there, where it is not -1.

    It goes block by block, so that the logits of all positions never are in memory; a block without a target
    costs nothing.
    """
    tokens = targets.shape[0]
    size = min(PROMPT_BLOCK, tokens)
    missing = -tokens % size
    blocks = (
        jnp.pad(hidden, ((0, missing), (0, 0))).reshape(-1, size, hidden.shape[1]),
        jnp.pad(targets, (0, missing), constant_values=-1).reshape(-1, size),
    )

    def scored(block: tuple[jax.Array, jax.Array]) -> Logprobs[jax.Array]:
        return report(logits_of(block[0]), jnp.maximum(block[1], 0))

    def skipped(block: tuple[jax.Array, jax.Array]) -> Logprobs[jax.Array]:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(scored, block))

    def report_block(block: tuple[jax.Array, jax.Array]) -> Logprobs[jax.Array]:
        return lax.cond(jnp.any(block[1] >= 0), scored, skipped, block)

    reports = lax.map(report_block, blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(tokens + missing, *leaf.shape[2:])[:tokens], reports)


def largest(x: Float[Array, "n vocab"], k: int) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """The k largest of each row and where they are. They are in the k blocks of the largest maxima, so that
    only those are sorted: sorting a vocabulary takes a GPU longer than all else that is done to it."""
    n, vocab = x.shape
    if vocab <= 2 * k * BLOCK:
        values, ids = lax.top_k(x, k)
        return values, ids
    padded = jnp.pad(x, ((0, 0), (0, -vocab % BLOCK)), constant_values=-jnp.inf)
    blocks = padded.reshape(n, -1, BLOCK)
    chosen = lax.top_k(blocks.max(axis=-1), k)[1]  # [n, k]
    candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1)
    values, places = lax.top_k(candidates.reshape(n, -1), k)
    block = jnp.take_along_axis(chosen, places // BLOCK, axis=1)
    return values, block * BLOCK + places % BLOCK


def pack_logprobs(logprobs: Logprobs[jax.Array]) -> Int[Array, "n width"]:
    """The columns that `unpack_output` knows; floats as their bits."""
    n = logprobs.logprob.shape[0]

    def bits(field: jax.Array) -> jax.Array:
        return field if field.dtype == jnp.int32 else lax.bitcast_convert_type(field, jnp.int32)

    return jnp.concatenate([bits(field).reshape(n, -1) for field in logprobs], axis=1)
