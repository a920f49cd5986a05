"""From logits to tokens: pure functions, each row by its own parameters, and no sort of the vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from jbatch.device.state import Rows
from jbatch.sampler import Sampler
from jbatch.seam.row_data import RULED_OUT

_SEARCH_BITS = 4  # per pass over the logits in `_largest_threshold`


def draw(
    logits: Float[Array, "draws vocab"],
    rows: Rows,
    positions: Int[Array, " draws"],
    live: Bool[Array, " draws"],
    *,
    sampler: Sampler,
) -> tuple[Int[Array, " draws"], Float[Array, "draws vocab"]]:
    """One token for each draw, and the logits that it was drawn from: over the temperature, and -inf where a
    token is ruled out or filtered out. Those of greedy rows are not scaled or filtered, as in vLLM.

    `positions` are those that the tokens will have in their sequences.

    `sampler` is static: at least what each live row needs. Rows of temperature 0 are greedy in every one, and
    unlikely tokens are looked for only where a live row leaves them out.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if sampler == Sampler.GREEDY:
        return best, logits
    scaled = logits / jnp.where(rows["temperature"] > 0, rows["temperature"], 1.0)[:, None]
    if sampler.filters:
        scaled = _keep(scaled, _lowest_kept(scaled, rows.columns, live))
    # Gumbel-max: the argmax of logits with Gumbel noise is a sample of the softmax (Gumbel 1954).
    noise = _noise(rows["seed"], rows["sample_idx"], positions, logits.shape[-1])
    sampled = jnp.argmax(scaled + noise, axis=-1)
    tokens = jnp.where(rows["temperature"] > 0, sampled, best).astype(jnp.int32)
    drawn_from = jnp.where((rows["temperature"] > 0)[:, None], scaled, logits)
    return tokens, jnp.where(logits <= RULED_OUT / 2, -jnp.inf, drawn_from)


def keep_likely(
    scaled: Float[Array, "draws vocab"], columns: Int[Array, "draws row_width"]
) -> Float[Array, "draws vocab"]:
    """Set to -inf all but what min-p, then top-k, then top-p keep; ties at a threshold are kept."""
    return _keep(scaled, lowest_likely(scaled, Rows(columns)))


def _keep(scaled: Float[Array, "draws vocab"], lowest: UInt[Array, " draws"]) -> Float[Array, "draws vocab"]:
    return jnp.where(_ordered(scaled) >= lowest[:, None], scaled, -jnp.inf)


def _lowest_kept(
    scaled: Float[Array, "draws vocab"], columns: Int[Array, "draws row_width"], live: Bool[Array, " draws"]
) -> UInt[Array, " draws"]:
    """`lowest_likely`; on a CPU 0, which keeps all, where no live row leaves out any.

    There the search costs ten times all else that a step does with a large vocabulary. On a GPU it costs
    little, and the host would have to wait for the device to know which branch to launch.
    """

    def search(scaled: jax.Array, columns: jax.Array, live: jax.Array) -> jax.Array:
        return lowest_likely(scaled, Rows(columns))

    def search_where_asked(scaled: jax.Array, columns: jax.Array, live: jax.Array) -> jax.Array:
        rows = Rows(columns)
        leaves_out = (rows["top_k"] > 0) | (rows["top_p"] < 1) | (rows["min_p"] > 0)
        filters = live & (rows["temperature"] > 0) & leaves_out
        keep_all = jnp.zeros(len(scaled), jnp.uint32)
        return lax.cond(jnp.any(filters), search, lambda *_: keep_all, scaled, columns, live)

    return lax.platform_dependent(scaled, columns, live, cpu=search_where_asked, default=search)


def lowest_likely(scaled: Float[Array, "draws vocab"], rows: Rows) -> UInt[Array, " draws"]:
    """The key (see `_ordered`) of the least likely token that min-p, then top-k, then top-p keep."""
    peak = scaled.max(axis=-1, keepdims=True)
    keys = _ordered(scaled)
    passing = scaled - peak >= jnp.log(rows["min_p"])[:, None]
    lowest = jnp.where(passing, keys, keys.max(axis=-1, keepdims=True)).min(axis=-1)

    top_k = jnp.where(rows["top_k"] > 0, rows["top_k"], scaled.shape[-1]).astype(jnp.float32)
    lowest = jnp.maximum(lowest, _largest_threshold(keys, jnp.ones_like(scaled), top_k))

    weights = jnp.where(keys >= lowest[:, None], jnp.exp(scaled - peak), 0.0)
    nucleus = _largest_threshold(keys, weights, rows["top_p"] * weights.sum(axis=-1))
    return jnp.where(rows["top_p"] < 1, jnp.maximum(lowest, nucleus), lowest)


def _largest_threshold(
    keys: UInt[Array, "draws vocab"], weights: Float[Array, "draws vocab"], target: Float[Array, " draws"]
) -> UInt[Array, " draws"]:
    """The largest t with sum(weights[keys >= t]) >= target, found digit by digit: 8 passes, no sort."""
    digits = jnp.arange(1, 2**_SEARCH_BITS, dtype=jnp.uint32)

    def narrow(idx: Int[Array, ""], found: UInt[Array, " draws"]) -> UInt[Array, " draws"]:
        shift = jnp.uint32(32 - _SEARCH_BITS) - idx.astype(jnp.uint32) * _SEARCH_BITS
        tried = found[:, None] | (digits << shift)[None]  # [draws, digits]
        above = keys[:, :, None] >= tried[:, None, :]
        mass = jnp.where(above, weights[:, :, None], 0.0).sum(axis=1)
        digit = (mass >= target[:, None]).sum(axis=1).astype(jnp.uint32)  # mass falls as the digit grows
        return found | (digit << shift)

    return lax.fori_loop(0, 32 // _SEARCH_BITS, narrow, jnp.zeros(keys.shape[0], jnp.uint32))


def _ordered(x: Float[Array, "*n"]) -> UInt[Array, "*n"]:
    """Unsigned integers in the order of the floats."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    negative: Bool[Array, "*n"] = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _noise(
    seeds: Int[Array, " draws"],
    sample_idxs: Int[Array, " draws"],
    positions: Int[Array, " draws"],
    vocab_size: int,
) -> Float[Array, "draws vocab"]:
    """Gumbel noise that depends on nothing but a row's seed, sample and position: never on its neighbours."""

    def row_noise(
        seed: Int[Array, ""], sample_idx: Int[Array, ""], position: Int[Array, ""]
    ) -> Float[Array, " vocab"]:
        bits = lax.bitcast_convert_type(seed, jnp.uint32)
        # What jax.random.key makes of a uint32; that adds an offset which users may set.
        key = jax.random.wrap_key_data(jnp.stack([jnp.uint32(0), bits]), impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, sample_idx), position)
        return jax.random.gumbel(key, (vocab_size,), jnp.float32, mode="low")

    return jax.vmap(row_noise)(seeds, sample_idxs, positions)
