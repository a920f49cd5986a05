"""What comes back: RequestOutput and its parts."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import NamedTuple

from jbatch import shown

Label = str | int  # of a version of the weights
MAX_SHOWN = 3  # samples, in a line


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
    """A token's log-probability at one position, and its place among all tokens there (1: the likeliest).

    The place of a token that only `logprob_token_ids` names is None where it is not among the likeliest 20.

    `decoded_token` is the token by itself, so that tokens of different bytes have different texts: "▁is" is
    " is" wherever it stands, and a part of a character is "bytes:\\xe6\\x97", as OpenAI writes it.
    `token_bytes` are what it adds to a text: joined, those of an output's tokens are its text. None: it adds
    nothing (a special token that is left out, an id that the tokenizer does not know), or it is not known.
    """

    logprob: float
    rank: int | None
    decoded_token: str | None = None
    token_bytes: bytes | None = None


@dataclasses.dataclass(frozen=True)
class CompletionOutput:
    """One generated text: what its tokens add to the prompt's. `token_ids` includes a stop token, `text` does
    not."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None = None  # the stop string or token id; None for end-of-sequence
    logprobs: list[dict[int, Logprob]] | None = None  # per token: it and the likeliest ones, by token id
    cumulative_logprob: float | None = None  # of all tokens, where log-probabilities were asked for
    error: str | None = None  # why, where finish_reason is "error"
    text_offset: list[int] | None = None  # with log-probabilities: where each token begins in `text`
    # The weights that drew its tokens: the first token of each version, and the version's label.
    weight_versions: tuple[tuple[int, Label], ...] = ()

    def __repr__(self) -> str:
        """The text, and how it ended; not its tokens."""
        parts = [
            f"index={self.index}",
            f"text={shown.shorten(self.text)!r}",
            shown.count(len(self.token_ids)),
            f"finish_reason={str(self.finish_reason)!r}",
        ]
        if self.stop_reason is not None:
            parts.append(f"stop_reason={self.stop_reason!r}")
        if self.cumulative_logprob is not None:
            parts.append(f"cumulative_logprob={self.cumulative_logprob:.4g}")
        if self.error is not None:
            parts.append(f"error={self.error!r}")
        return f"CompletionOutput({', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = [self._row()]
        if self.error is not None:
            rows.append(("error", self.error, "", ""))
        return shown.table(HEADER, rows)

    def _row(self) -> tuple[str, str, str, str]:
        """Of the table that an output is in a notebook."""
        return f"sample {self.index}", self.text, shown.count(len(self.token_ids)), str(self.finish_reason)


HEADER = ("", "text", "", "finish_reason")


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """A finished request: `outputs` has its n samples. `error` says why where finish_reason is "error"."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    metrics: RequestMetrics | None = None
    error: str | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # per prompt token; None for the first
    num_cached_tokens: int = 0  # of the prompt: found in the cache, and not computed, for the first sample

    def __repr__(self) -> str:
        """Texts of prompt and outputs; not their tokens."""
        if self.prompt is None:
            prompt = f"prompt_token_ids={shown.ids(self.prompt_token_ids)}"
        else:
            prompt = f"prompt={shown.shorten(self.prompt)!r}"
        outputs = [repr(output) for output in self.outputs[:MAX_SHOWN]]
        if len(self.outputs) > MAX_SHOWN:
            outputs.append(f"... {len(self.outputs) - MAX_SHOWN} more")
        num_prompt = shown.count(len(self.prompt_token_ids), "prompt token")
        error = "" if self.error is None else f", error={self.error!r}"
        return (
            f"RequestOutput(request_id={self.request_id!r}, {prompt}, {num_prompt}, "
            f"outputs=[{', '.join(outputs)}]{error})"
        )

    def _repr_html_(self) -> str:
        prompt = shown.ids(self.prompt_token_ids) if self.prompt is None else self.prompt
        num_prompt = shown.count(len(self.prompt_token_ids))
        if self.num_cached_tokens:
            num_prompt += f" ({self.num_cached_tokens} cached)"
        rows = [("prompt", prompt, num_prompt, ""), *(output._row() for output in self.outputs)]
        if self.error is not None:
            rows.append(("error", self.error, "", ""))
        return shown.table(HEADER, rows)


def merge_samples(parts: Sequence[RequestOutput]) -> RequestOutput:
    """One output of a request's n samples, from one of each, in any order."""
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda part: part.outputs[0].index)
    errors = [f"sample {part.outputs[0].index}: {part.error}" for part in parts if part.error]
    return dataclasses.replace(
        parts[0],
        outputs=[part.outputs[0] for part in parts],
        metrics=_merge_metrics([part.metrics for part in parts if part.metrics is not None]),
        error="; ".join(errors) or None,
    )


def _merge_metrics(parts: list[RequestMetrics]) -> RequestMetrics:
    """From the first sample's beginning to the last one's end."""

    def known(name: str) -> list[float]:
        return [value for part in parts if (value := getattr(part, name)) is not None]

    return RequestMetrics(
        arrival_time=parts[0].arrival_time,
        scheduled_ts=min(known("scheduled_ts"), default=None),
        first_token_ts=min(known("first_token_ts"), default=None),
        last_token_ts=max(known("last_token_ts"), default=None),
        finished_ts=max(known("finished_ts")),
        num_generation_tokens=sum(part.num_generation_tokens for part in parts),
        num_preemptions=sum(part.num_preemptions for part in parts),
    )
