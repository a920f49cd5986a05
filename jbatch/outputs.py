"""What comes back: RequestOutput and its parts."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"  # a stop token or a stop string
    LENGTH = "length"  # max_tokens
    ABORT = "abort"
    ERROR = "error"


@dataclasses.dataclass(frozen=True)
class RequestMetrics:
    """When things happened to one request, in seconds on the engine's monotonic clock."""

    arrival_time: float
    scheduled_ts: float | None
    first_token_ts: float | None
    last_token_ts: float | None
    finished_ts: float
    num_generation_tokens: int
    num_preemptions: int

    @property
    def first_token_latency(self) -> float | None:
        """Time to first token, from arrival."""
        return None if self.first_token_ts is None else self.first_token_ts - self.arrival_time


class Logprob(NamedTuple):
    """A token's log-probability at one position, and its place among all tokens there (1: the likeliest)."""

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclasses.dataclass(frozen=True)
class CompletionOutput:
    """One generated text. `token_ids` includes a stop token, `text` does not."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None = None  # the stop string or token id; None for end-of-sequence
    logprobs: list[dict[int, Logprob]] | None = None  # per token: it and the likeliest ones, by token id
    cumulative_logprob: float | None = None  # of all tokens, where log-probabilities were asked for


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """A finished request. `error` says why where finish_reason is "error"."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    metrics: RequestMetrics | None = None
    error: str | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # per prompt token; None for the first
