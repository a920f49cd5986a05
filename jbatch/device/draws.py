"""The draws that a step makes: from whose logits, for which rows, and how each sequence goes on."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jbatch.config import LogprobsMode
from jbatch.device import sampling
from jbatch.device.process import ExtraState, Processing, process, stop_ids
from jbatch.device.process.user_fn import LogitsFn
from jbatch.device.spans import Part, with_frozen
from jbatch.device.state import Rows, write_columns
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket
from jbatch.seam.row_data import RULED_OUT
from jbatch.seam.step_input import StepFields
from jbatch.seam.step_output import Status


class Draws(NamedTuple):
    """The tokens to draw: from whose logits, for which rows."""

    places: Int[Array, " draws"] | None  # in the packed axis; None: every place, in order
    rows: Int[Array, " draws"]
    columns: Int[Array, "draws row_width"]  # the rows, as they are before
    lengths: Int[Array, " draws"]  # tokens that their sequences have in the cache
    live: Bool[Array, " draws"]  # the others draw nothing
    written: Int[Array, " draws"]  # the rows, or num_rows where a row stays as it is


def draws_of(
    rows: Int[Array, "num_rows row_width"],
    fields: StepFields[jax.Array],
    parts: list[Part],
    bucket: Bucket,
) -> Draws:
    """Those of the slots, then those of the chunks."""
    if not bucket.tokens:
        return _slot_draws(rows, fields, parts[0])
    chunk_draws = _chunk_draws(rows, fields, parts[-1], bucket)
    if not bucket.slots:
        return chunk_draws
    slot_draws = _slot_draws(rows, fields, parts[0])
    slot_draws = slot_draws._replace(places=jnp.arange(bucket.slots))
    return jax.tree.map(lambda *both: jnp.concatenate(both), slot_draws, chunk_draws)


def _slot_draws(rows: Int[Array, "num_rows row_width"], fields: StepFields[jax.Array], part: Part) -> Draws:
    return Draws(
        places=None,
        rows=fields.slot_rows,
        columns=with_frozen(rows, fields),
        lengths=part.metadata.kv_lens,
        live=part.live,
        written=fields.slot_rows,
    )


def _chunk_draws(
    rows: Int[Array, "num_rows row_width"], fields: StepFields[jax.Array], part: Part, bucket: Bucket
) -> Draws:
    """A row begins with what came with the draw, or goes on with what it is."""
    places = fields.draw_places
    begun = write_columns(fields.setups, last_token=part.ids[places])
    columns = jnp.where(fields.has_setup[:, None] > 0, begun, rows[fields.draw_rows])
    live = (fields.draw_rows < rows.shape[0]) & (Rows(columns)["finished"] == 0)
    return Draws(
        places=bucket.slots + places,
        rows=fields.draw_rows,
        columns=columns,
        lengths=part.positions[places] + 1,
        live=live,
        written=jnp.where(live, fields.draw_rows, rows.shape[0]),
    )


class Drawing(NamedTuple):
    """How a program draws tokens."""

    sampler: Sampler
    logits_fn: LogitsFn | None = None
    logprobs_mode: LogprobsMode = "raw_logprobs"


class Sampled(NamedTuple):
    """The outcome of sampling, for each draw."""

    tokens: Int[Array, " draws"]
    num_tokens: Bool[Array, " draws"]
    status: Int[Array, " draws"]
    columns: Int[Array, "draws row_width"]  # the rows of device state, advanced by the token
    logits: Float[Array, "draws vocab"]  # what was drawn from: after temperature and filters


def sample(
    logits: Float[Array, "draws vocab"],
    draws: Draws,
    extra: ExtraState,
    token_mask: Int[Array, "draws words"] | None,
    drawing: Drawing,
) -> Sampled:
    """Draw a token for each live draw, and decide how its sequence goes on.

    `extra` holds the draws' rows. Programs that process logits end a sequence where nothing is left to draw.
    """
    rows, live = Rows(draws.columns), draws.live
    processing = None if token_mask is None else Processing(token_mask, drawing.logits_fn)
    if processing is None:
        logits = stop_ids.rule_out(logits, rows)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)  # a NaN would become an ordinary-looking token
    possible = finite
    if processing is not None:
        logits = process(logits, rows, draws.lengths, extra, processing)
        finite &= jnp.all(jnp.isfinite(logits), axis=-1)
        possible = finite & (logits.max(axis=-1) > RULED_OUT / 2)
    tokens, drawn_from = sampling.draw(logits, rows, draws.lengths, live, sampler=drawing.sampler)
    stopped = jnp.any(tokens[:, None] == rows["stop_ids"], axis=-1)
    budget = rows["budget"] - 1
    status = jnp.where(budget <= 0, Status.OUT_OF_BUDGET, Status.RUNNING)
    status = jnp.where(stopped, Status.STOPPED, status)
    if processing is not None:
        status = jnp.where(possible, status, Status.NOTHING_LEFT)
    status = jnp.where(live, jnp.where(finite, status, Status.NON_FINITE), Status.RUNNING)
    advanced = write_columns(
        draws.columns,
        last_token=tokens,
        length=draws.lengths,
        budget=budget,
        min_left=rows["min_left"] - 1,
        finished=status != Status.RUNNING,
    )
    columns = jnp.where(live[:, None], advanced, draws.columns)
    return Sampled(jnp.where(live, tokens, 0), live & possible, status, columns, drawn_from)
