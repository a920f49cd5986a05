"""What EXTENDED steps do to logits before a token is drawn, and what they report of them: pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jbatch.device import sampling
from jbatch.device.state import ExtraState
from jbatch.errors import ConfigError
from jbatch.host.plan import Logprobs, RowSetup
from jbatch.host.row_data import RULED_OUT
from jbatch.sampling_params import MAX_LOGPROBS

PROMPT_BLOCK = 128  # positions of a prompt whose logits are in memory at once
BLOCK = 128  # tokens of the vocabulary; those of the likeliest blocks are sorted, and not all


class LogitsState(NamedTuple):
    """What a `logits_fn` may look at, of the sequence in each slot. Empty slots hold anything."""

    last_token: Int[Array, " slots"]
    length: Int[Array, " slots"]  # tokens so far, prompt and output: the position of the one to draw
    prompt_len: Int[Array, " slots"]
    in_prompt: Bool[Array, "slots vocab"]  # the tokens that the prompt has
    counts: Int[Array, "slots vocab"]  # how often the output has each token
    temperature: Float[Array, " slots"]  # 0: greedy
    seed: Int[Array, " slots"]  # the bits of a uint32
    sample_idx: Int[Array, " slots"]  # of the request's n samples


LogitsFn = Callable[[Float[Array, "slots vocab"], LogitsState], Float[Array, "slots vocab"]]


def process(
    logits: Float[Array, "slots vocab"],
    rows: RowSetup,
    lengths: Int[Array, " slots"],
    extra: ExtraState,
    logits_fn: LogitsFn | None,
) -> Float[Array, "slots vocab"]:
    """The logits to draw from, but for temperature and what follows it. `extra` holds the slots' rows.

    The order is vLLM's: allowed ids and biases, bad words, min_tokens, `logits_fn`, penalties. What is ruled
    out stays so, and is RULED_OUT in the result.
    """
    logits = jnp.where(rows.has_bias[:, None] > 0, logits + extra.bias, logits)  # RULED_OUT absorbs it
    logits = _ban_words(logits, rows, extra)
    logits = sampling.ban_stop_ids(logits, rows)
    out = logits <= RULED_OUT / 2  # not where it is NaN
    if logits_fn is not None:
        changed = logits_fn(logits, logits_state(rows, lengths, extra))
        out |= jnp.isneginf(changed)
        logits = changed
    return jnp.where(out, RULED_OUT, _penalise(logits, rows, extra))


def logits_state(rows: RowSetup, lengths: Int[Array, " slots"], extra: ExtraState) -> LogitsState:
    """What the user's function sees."""
    return LogitsState(
        last_token=rows.last_token,
        length=lengths,
        prompt_len=rows.prompt_len,
        in_prompt=extra.in_prompt,
        counts=extra.counts,
        temperature=rows.temperature,
        seed=rows.seed,
        sample_idx=rows.sample_idx,
    )


def check_logits_fn(logits_fn: LogitsFn, slots: int, vocab_size: int) -> None:
    """Trace a user's function once. Raises ConfigError where that fails, or for a result of another shape."""

    def leaf(dtype: type, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((slots, *shape), dtype)

    logits, ints = leaf(jnp.float32, vocab_size), leaf(jnp.int32)
    state = LogitsState(
        last_token=ints,
        length=ints,
        prompt_len=ints,
        in_prompt=leaf(jnp.bool, vocab_size),
        counts=leaf(jnp.int32, vocab_size),
        temperature=leaf(jnp.float32),
        seed=ints,
        sample_idx=ints,
    )
    name = getattr(logits_fn, "__name__", type(logits_fn).__name__)
    try:
        result = jax.eval_shape(logits_fn, logits, state)
    except Exception as error:  # whatever a user's function raises
        what = f"{type(error).__name__}: {error}"
        raise ConfigError("logits_fn", name, f"cannot be traced for {slots} slots: {what}") from error
    found = (getattr(result, "shape", None), getattr(result, "dtype", None))
    if found != (logits.shape, logits.dtype):
        got = f"{found[1]}{list(found[0])}" if found[0] is not None else type(result).__name__
        raise ConfigError("logits_fn", name, f"must return float32{list(logits.shape)}, not {got}")


def _ban_words(
    logits: Float[Array, "slots vocab"], rows: RowSetup, extra: ExtraState
) -> Float[Array, "slots vocab"]:
    """Rule out the last token of each bad word whose other tokens have just been drawn."""
    begins, last = extra.bad_words[:, :, :-1], extra.bad_words[:, :, -1]
    begun = jnp.all((begins < 0) | (begins == extra.history[:, None]), axis=-1)
    banned = begun & (last >= 0) & (rows.has_bad_words > 0)[:, None]
    slots, vocab = logits.shape
    ids = jnp.where(banned, last, vocab)  # out of range: dropped
    return logits.at[jnp.arange(slots)[:, None], ids].set(RULED_OUT, mode="drop")


def _penalise(
    logits: Float[Array, "slots vocab"], rows: RowSetup, extra: ExtraState
) -> Float[Array, "slots vocab"]:
    repetition = rows.repetition_penalty[:, None]
    seen = extra.in_prompt | (extra.counts > 0)
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(seen, repeated, logits)
    logits -= rows.frequency_penalty[:, None] * extra.counts
    return logits - rows.presence_penalty[:, None] * (extra.counts > 0)


def report(
    logits: Float[Array, "n vocab"], tokens: Int[Array, " n"], ids: Int[Array, "n ids"] | None = None
) -> Logprobs:
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


def report_targets(
    logits_of: Callable[[Float[Array, "n embed"]], Float[Array, "n vocab"]],
    hidden: Float[Array, "tokens embed"],
    targets: Int[Array, " tokens"],
) -> Logprobs:
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

    def scored(block: tuple[jax.Array, jax.Array]) -> Logprobs:
        return report(logits_of(block[0]), jnp.maximum(block[1], 0))

    def skipped(block: tuple[jax.Array, jax.Array]) -> Logprobs:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(scored, block))

    def one(block: tuple[jax.Array, jax.Array]) -> Logprobs:
        return lax.cond(jnp.any(block[1] >= 0), scored, skipped, block)

    found = lax.map(one, blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(tokens + missing, *leaf.shape[2:])[:tokens], found)


def largest(x: Float[Array, "n vocab"], k: int) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """The k largest of each row and where they are. They are in the k blocks of the largest maxima, so that
    only those are sorted: sorting a vocabulary takes a GPU longer than all else that is done to it."""
    n, vocab = x.shape
    if vocab <= 2 * k * BLOCK:
        return lax.top_k(x, k)
    padded = jnp.pad(x, ((0, 0), (0, -vocab % BLOCK)), constant_values=-jnp.inf)
    blocks = padded.reshape(n, -1, BLOCK)
    chosen = lax.top_k(blocks.max(axis=-1), k)[1]  # [n, k]
    candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1)
    values, places = lax.top_k(candidates.reshape(n, -1), k)
    block = jnp.take_along_axis(chosen, places // BLOCK, axis=1)
    return values, block * BLOCK + places % BLOCK


def pack_logprobs(logprobs: Logprobs) -> Int[Array, "n width"]:
    """The columns that `unpack_output` knows; floats as their bits."""
    n = logprobs.logprob.shape[0]

    def bits(field: jax.Array) -> jax.Array:
        return field if field.dtype == jnp.int32 else lax.bitcast_convert_type(field, jnp.int32)

    return jnp.concatenate([bits(field).reshape(n, -1) for field in logprobs], axis=1)
