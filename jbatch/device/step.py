"""The step that a device computes: a pure function (parameters, state, input) -> (state, output).

One function serves every bucket. Decoding sequences come first in the packed token axis, then chunks of
prompts; each part has its own attention kernel, and all else is computed once over both. What is drawn is a
list of its own: one draw for each slot, then those of the chunks. A part that a bucket lacks leaves no trace
in the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jbatch.config import ModelConfig
from jbatch.device import model
from jbatch.device.backend import Attention
from jbatch.device.draws import Drawing, Sampled, draws_of, sample
from jbatch.device.logprobs import pack_logprobs, report, report_drawn, report_targets
from jbatch.device.process import ExtraState, take_in
from jbatch.device.spans import forward, parts_of
from jbatch.device.state import EngineState
from jbatch.seam.bucket import Bucket
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import unpack
from jbatch.seam.step_output import Logprobs

Params = tuple[jax.Array, ...]
Result = tuple[EngineState, ExtraState, Array]  # the output: see seam/step_output.py
Step = Callable[..., Result]


def make_step(
    config: ModelConfig,
    shape: StateShape,
    bucket: Bucket,
    drawing: Drawing,
    attention: Attention,
) -> Step:
    """The function to compile for a bucket and a way of drawing.

    Its arguments are parameters, state, the state of the features that the program has, the packed input, and
    a mask of tokens, or None where the program does not change logits.

    Raises:
      ValueError: for a bucket of several decode steps.
    """
    if bucket.steps != 1:
        raise ValueError(f"{bucket}: a dispatch computes one decode step")
    sampler = drawing.sampler

    def step(
        params: Params,
        state: EngineState,
        extra: ExtraState,
        packed: Int[Array, " size"],
        token_mask: Int[Array, "draws words"] | None,
    ) -> Result:
        fields = unpack(packed, bucket, shape, sampler)
        llama = model.build(config, params)
        tables = _update_tables(state.block_tables, fields.table_updates)
        parts = parts_of(state.rows, tables, fields, bucket)
        kv_pages, hidden = forward(llama, state.kv_pages, parts, attention)

        draws = draws_of(state.rows, fields, parts, bucket)
        logits = llama.logits(hidden if draws.places is None else hidden[draws.places])
        of_rows = jax.tree.map(lambda leaf: leaf[draws.rows], extra)
        sampled = sample(logits, draws, of_rows, token_mask, drawing)
        extra = take_in(extra, draws.rows, sampled.tokens, sampled.num_tokens)
        rows = state.rows.at[draws.written].set(sampled.columns, mode="drop")
        state = EngineState(rows, tables, kv_pages)
        if not sampler.reports:
            return state, extra, _pack_output(sampled)
        if drawing.logprobs_mode == "processed_logprobs":
            reports = [report_drawn(sampled.logits, sampled.tokens, of_rows["logprob_ids"])]
        else:
            reports = [report(logits, sampled.tokens, of_rows["logprob_ids"])]
        if bucket.tokens:
            reports.append(report_targets(llama.logits, hidden[bucket.slots :], fields.targets))
        return state, extra, _pack_reports(sampled, *reports)

    return step


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
