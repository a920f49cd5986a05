"""What steps do to logits before a token is drawn: a file for each feature.

A feature with per-request state has a name in `seam/row_data.py`, where the layout of its data is, and here
`abstract` (its state), `set_row` (put a row's data in place) and a pure function of the logits.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jbatch.device import logprobs
from jbatch.device.process import bad_words, bias, mask, penalties, stop_ids, user_fn
from jbatch.device.process.user_fn import LogitsFn
from jbatch.device.state import Rows
from jbatch.sampler import Sampler
from jbatch.seam.row_data import RULED_OUT

ExtraState = dict[str, Any]  # the state of each feature that a program has, by the feature's name


class Processing(NamedTuple):
    """What comes with a step, beside its rows."""

    token_mask: Int[Array, "draws words"]
    logits_fn: LogitsFn | None = None


def features_of(sampler: Sampler) -> dict[str, ModuleType]:
    """The features with state of a program, by name."""
    processing = (bias, bad_words, penalties) if sampler.processes else ()
    reporting = (logprobs,) if sampler.reports else ()
    return {module.FEATURE: module for module in (*processing, *reporting)}


def abstract_extra(sampler: Sampler, num_rows: int, vocab_size: int) -> ExtraState:
    """The state of a program's features, in shapes and dtypes, without memory."""
    return {name: module.abstract(num_rows, vocab_size) for name, module in features_of(sampler).items()}


def extra_bytes(sampler: Sampler, num_rows: int, vocab_size: int) -> int:
    """Memory of the state of a program's features."""
    leaves = jax.tree.leaves(abstract_extra(sampler, num_rows, vocab_size))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def process(
    logits: Float[Array, "draws vocab"],
    rows: Rows,
    lengths: Int[Array, " draws"],
    extra: ExtraState,
    processing: Processing,
) -> Float[Array, "draws vocab"]:
    """The logits to draw from, but for temperature and what follows it. `extra` holds the draws' rows.

    The order is vLLM's: allowed ids and biases, masks, bad words, min_tokens, `logits_fn`, penalties. What is
    ruled out stays so, and is RULED_OUT in the result.
    """
    logits = bias.add(logits, rows, extra["bias"])
    logits = mask.rule_out(logits, processing.token_mask)
    logits = bad_words.rule_out(logits, rows, extra["bad_words"])
    logits = stop_ids.rule_out(logits, rows)
    out = logits <= RULED_OUT / 2  # not where it is NaN
    if processing.logits_fn is not None:
        state = user_fn.logits_state(rows, lengths, extra["counts"])
        changed = user_fn.call(processing.logits_fn, logits, state)
        out |= jnp.isneginf(changed)
        logits = changed
    return jnp.where(out, RULED_OUT, penalties.penalise(logits, rows, extra["counts"]))


def take_in(
    extra: ExtraState, rows: Int[Array, " draws"], tokens: Int[Array, " draws"], drawn: Bool[Array, " draws"]
) -> ExtraState:
    """The state after tokens were drawn."""
    extra = dict(extra)
    if "counts" in extra:
        extra["counts"] = penalties.count(extra["counts"], rows, tokens, drawn)
    if "bad_words" in extra:
        extra["bad_words"] = bad_words.append(extra["bad_words"], rows, tokens, drawn)
    return extra
