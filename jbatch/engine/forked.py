"""What a request that goes on as another one, from its present tokens, asks for."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from jbatch.engine.intake import ScheduleFields
from jbatch.errors import RequestError
from jbatch.host.request import Sequence
from jbatch.sampling_params import SamplingParams


class Forked(NamedTuple):
    """A request to add: its prompt are the other's prompt and output."""

    prompt: list[int]
    params: SamplingParams
    request_idx: int
    cache_salt: str | None
    schedule: ScheduleFields


def forked(sequence: Sequence, seed: int | None) -> Forked:
    """From one sample of a request. Raises RequestError where it generates nothing."""
    request, num_drawn = sequence.request, sequence.num_known - sequence.num_prompt
    if not request.max_tokens:
        raise RequestError("max_tokens", 0, "a request that generates nothing cannot be forked")
    changes: dict[str, Any] = {
        "n": 1,
        "seed": seed,
        "max_tokens": request.max_tokens - num_drawn,
        "min_tokens": max(0, request.params.min_tokens - num_drawn),
        "prompt_logprobs": None,
        "truncate_prompt_tokens": None,
    }
    limits = request.limits
    schedule: ScheduleFields = {
        "priority": request.priority,
        "deadline": request.deadline,
        "user": request.user,
        "ttft_ms": limits.ttft_ms,
        "tpot_ms": limits.tpot_ms,
        "e2el_ms": limits.e2el_ms,
        "streamed": request.streamed,
    }
    params = dataclasses.replace(request.params, **changes)
    return Forked(list(sequence.token_ids), params, request.request_idx, request.cache_salt, schedule)
