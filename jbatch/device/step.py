"""The step that a device computes: a pure function (parameters, state, input) -> (state, output).

One function serves every bucket. Decoding sequences come first in the packed token axis, then chunks of
prompts; each part has its own attention kernel, and all else is computed once over both. What is drawn is a
list of its own: one draw for each slot, then those of the chunks. A part that a bucket lacks leaves no trace
in the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jbatch.config import ModelConfig
from jbatch.device import model
from jbatch.device.backend import Attention
from jbatch.device.draws import Drawing, Sampled, draws_of, sample
from jbatch.device.logprobs import pack_logprobs, report, report_drawn, report_targets
from jbatch.device.process import ExtraState, take_in
from jbatch.device.ranks import ALONE, Ranks
from jbatch.device.spans import forward, parts_of
from jbatch.device.state import EngineState
from jbatch.seam.bucket import Bucket
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import unpack
from jbatch.seam.step_output import Logprobs, Status

Params = tuple[jax.Array, ...]
KvPages = tuple[jax.Array, ...]
Result = tuple[EngineState, ExtraState, Array]  # the output: see seam/step_output.py
Step = Callable[..., Result]


def make_step(
    config: ModelConfig,
    shape: StateShape,
    bucket: Bucket,
    drawing: Drawing,
    attention: Attention,
    ranks: Ranks = ALONE,
) -> Step:
    """The function to compile for a bucket and a way of drawing.

    Its arguments are parameters, state, the state of the features that the program has, the packed input, and
    a mask of tokens, or None where the program does not change logits.

    With several ranks each device calls it, with its part of the parameters and of the cache; all else is the
    same on all of them, and so is what is drawn.

    A bucket of several steps decodes as often in a loop on the device; it reports no log-probabilities.
    """
    sampler = drawing.sampler

    def step(
        params: Params,
        state: EngineState,
        extra: ExtraState,
        packed: Int[Array, " size"],
        token_mask: Int[Array, "draws words"] | None,
    ) -> Result:
        fields = unpack(packed, bucket, shape, sampler)
        llama = model.build(config, params, ranks)
        tables = _update_tables(state.block_tables, fields.table_updates)

        def draw(rows: Array, kv_pages: KvPages, extra: ExtraState) -> _Drawn:
            parts = parts_of(rows, tables, fields, bucket)
            kv_pages, hidden = forward(llama, kv_pages, parts, attention)
            draws = draws_of(rows, fields, parts, bucket)
            logits = llama.logits(hidden if draws.places is None else hidden[draws.places])
            of_rows = jax.tree.map(lambda leaf: leaf[draws.rows], extra)
            sampled = sample(logits, draws, of_rows, token_mask, drawing)
            extra = take_in(extra, draws.rows, sampled.tokens, sampled.num_tokens)
            rows = rows.at[draws.written].set(sampled.columns, mode="drop")
            return _Drawn(rows, kv_pages, extra, sampled, logits, hidden, of_rows)

        if bucket.steps > 1:
            rows, kv_pages, extra, output = _repeat(draw, bucket, state.rows, state.kv_pages, extra)
            return EngineState(rows, tables, kv_pages), extra, output
        drawn = draw(state.rows, state.kv_pages, extra)
        state = EngineState(drawn.rows, tables, drawn.kv_pages)
        if not sampler.reports:
            return state, drawn.extra, _pack_output(drawn.sampled)
        if drawing.logprobs_mode == "processed_logprobs":
            reports = [report_drawn(drawn.sampled.logits, drawn.sampled.tokens, drawn.of_rows["logprob_ids"])]
        else:
            reports = [report(drawn.logits, drawn.sampled.tokens, drawn.of_rows["logprob_ids"])]
        if bucket.tokens:
            reports.append(report_targets(llama.logits, drawn.hidden[bucket.slots :], fields.targets))
        return state, drawn.extra, _pack_reports(drawn.sampled, *reports)

    return step


class _Drawn(NamedTuple):
    """What one pass over the model leaves behind."""

    rows: Array
    kv_pages: KvPages
    extra: ExtraState
    sampled: Sampled
    logits: Array
    hidden: Array
    of_rows: ExtraState


def _repeat(
    draw: Callable[[Array, KvPages, ExtraState], _Drawn], bucket: Bucket, *state: Any
) -> tuple[Array, KvPages, ExtraState, Int[Array, "draws width"]]:
    """Decode `bucket.steps` times. A row that has ended draws no more."""

    def body(idx: Array, carry: tuple[Any, Array, Array, Array]) -> tuple[Any, Array, Array, Array]:
        state, tokens, counts, status = carry
        drawn = draw(*state)
        new = drawn.sampled
        status = jnp.where(status == Status.RUNNING, new.status, status)
        tokens, counts = tokens.at[:, idx].set(new.tokens), counts + new.num_tokens
        return (drawn.rows, drawn.kv_pages, drawn.extra), tokens, counts, status

    none = jnp.zeros(bucket.slots, jnp.int32)
    carry = state, jnp.zeros((bucket.slots, bucket.steps), jnp.int32), none, none
    state, *columns = jax.lax.fori_loop(0, bucket.steps, body, carry)
    return *state, jnp.column_stack(columns)


def _update_tables(
    block_tables: Int[Array, "num_rows pages_per_seq"], updates: Int[Array, "num_updates 3"]
) -> Int[Array, "num_rows pages_per_seq"]:
    return block_tables.at[updates[:, 0], updates[:, 1]].set(updates[:, 2], mode="drop")


def _pack_output(sampled: Sampled) -> Int[Array, "draws width"]:
    columns = (sampled.tokens, sampled.num_tokens, sampled.status)
    return jnp.stack([column.astype(jnp.int32) for column in columns], axis=1)


def _pack_reports(sampled: Sampled, *reports: Logprobs[jax.Array]) -> Int[Array, " size"]:
    """Of the draws, and of the tokens of chunks."""
    draws, *tokens = (pack_logprobs(logprobs) for logprobs in reports)
    draws = jnp.concatenate([_pack_output(sampled), draws], axis=1)
    return jnp.concatenate([columns.reshape(-1) for columns in (draws, *tokens)])
