"""The step that a device computes: jbatch/device/step.py's in PyTorch, on the same packed input and the same
state.

Everything that depends on the input stays on the device, with fixed shapes, so that a step without chunks of
prompts can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from bench.compare.torch_engine import model
from bench.compare.torch_engine.attention import Chunk
from bench.compare.torch_engine.draws import draws_of
from bench.compare.torch_engine.functions import Functions
from bench.compare.torch_engine.model import Llama
from bench.compare.torch_engine.spans import forward, parts_of, with_frozen
from bench.compare.torch_engine.state import State
from jbatch.seam.step_input import StepFields


def step(
    llama: Llama,
    state: State,
    fields: StepFields[Tensor],
    chunks: Sequence[Chunk],
    functions: Functions,
    plain: bool,
) -> Int[Tensor, "draws 3"]:
    """A step; its output for each draw: token, how many, status.

    Args:
      chunks: the host's view of the chunks in `fields`.
      plain: rows may have a temperature; else all are greedy.
    """
    _update_tables(state, fields.table_updates.long())
    slots = with_frozen(state, fields)
    parts = parts_of(state, fields, slots, chunks, functions.decode_attention)
    hidden = forward(llama, state, parts, functions)
    draws = draws_of(state, fields, slots, parts)
    logits = model.logits(llama, hidden[draws.places] if len(fields.tokens) else hidden)
    output, columns = functions.sample(logits, draws.columns, draws.lengths, draws.live, plain=plain)
    state.rows[draws.written] = columns
    return output


def _update_tables(state: State, updates: Int[Tensor, "num_updates 3"]) -> None:
    state.block_tables[updates[:, 0], updates[:, 1]] = updates[:, 2].to(state.block_tables.dtype)
