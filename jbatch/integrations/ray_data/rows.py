"""Rows of a dataset as requests, and outputs as the columns of `ray.data.llm`. Nothing here needs Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jbatch.errors import RequestError, check_option_names
from jbatch.outputs import RequestOutput
from jbatch.sampling_params import SamplingParams

PROMPTS = ("tokenized_prompt", "messages", "prompt")  # the first that a row has is taken, as by ray.data.llm
SAMPLING = "sampling_params"
ERROR = "__inference_error__"
MAX_INDEX = 2**63  # the seeds of ids that are no such integers are counted from here


class RowRequest(NamedTuple):
    """What a row asks for."""

    prompt: str | list[int] | None  # None: there are messages
    messages: list[dict[str, Any]] | None
    params: SamplingParams
    seed_index: int  # its own seed is derived from this and the engine's


class Answer(NamedTuple):
    """What a row gets: the columns, in this order. Those of a row without an answer are empty."""

    generated_text: str = ""
    generated_tokens: Sequence[int] = ()
    num_input_tokens: int = 0
    num_generated_tokens: int = 0
    finish_reason: str = ""
    time_taken_llm: float = -1.0  # seconds from when the engine had it to its end
    error: str = ""


def request_of(row: Mapping[str, Any], defaults: Mapping[str, Any], id_column: str | None) -> RowRequest:
    """What a row asks for.

    Args:
      defaults: sampling parameters that the model sets.

    Raises:
      RequestError: for a row without a prompt, and for parameters that are refused, naming them.
      TypeError: for an unknown parameter, suggesting the closest known one.
    """
    kind = next((name for name in PROMPTS if row.get(name) is not None), None)
    if kind is None:
        raise RequestError("prompt", None, f"a row needs one of {', '.join(sorted(PROMPTS))}")
    given = _without_nulls(row.get(SAMPLING) or {})
    check_option_names(given, SamplingParams.__dataclass_fields__, "SamplingParams")
    params = SamplingParams(**{**defaults, **given})
    if params.n != 1:
        raise RequestError("n", params.n, "a row has one answer: repeat the row")
    prompt, name = row[kind], None if id_column is None else row.get(id_column)
    messages = [_without_nulls(message) for message in prompt] if kind == "messages" else None
    if id_column is None:
        name = json.dumps([messages or prompt, given], sort_keys=True, default=str)
    elif name is None:
        raise RequestError(id_column, None, "the id column of a row must not be empty")
    asked = None if messages is not None else prompt if isinstance(prompt, str) else list(prompt)
    return RowRequest(asked, messages, params, index_of(name))


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that were set. The rows of a block have all fields in common: those that one row has alone are
    null in the others."""
    return {
        name: _without_nulls(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if value is not None
    }


def index_of(name: Any) -> int:
    """The index of a row by its id, the same in every process: an integer from 0 on is its own."""
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < MAX_INDEX:
        return name
    digest = hashlib.blake2b(f"{type(name).__name__}:{name}".encode(errors="replace"), digest_size=8)
    return MAX_INDEX + int.from_bytes(digest.digest())


def answer_of(output: RequestOutput, seconds: float) -> Answer:
    """What a row gets of its request's output."""
    sample = output.outputs[0]
    if output.error is not None:
        return Answer(num_input_tokens=len(output.prompt_token_ids), error=output.error)
    return Answer(
        generated_text=sample.text,
        generated_tokens=sample.token_ids,
        num_input_tokens=len(output.prompt_token_ids),
        num_generated_tokens=len(sample.token_ids),
        finish_reason=str(sample.finish_reason),
        time_taken_llm=seconds,
    )


def failed(error: Exception) -> Answer:
    """What a row gets that was refused."""
    return Answer(error=f"{type(error).__name__}: {error}")
