"""Log-probabilities as results have them: vLLM's form, and OpenAI's for completions and for chats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jbatch.outputs import Logprob, RequestOutput
from jbatch.sampling_params import SamplingParams

Tokens = Mapping[int, Logprob]  # at one position: by token id
LEAST_LOGPROB = -9999.0  # JSON has no infinity; vLLM's value


def by_token_id(positions: Iterable[Tokens | None]) -> list[dict[str, Any] | None]:
    """vLLM's form: per position, a token's log-probability, rank and text by its id."""
    return [
        None if tokens is None else {str(token_id): _flat(logprob) for token_id, logprob in tokens.items()}
        for tokens in positions
    ]


def _flat(logprob: Logprob) -> dict[str, Any]:
    return {
        "logprob": finite(logprob.logprob),
        "rank": logprob.rank,
        "decoded_token": logprob.decoded_token,
    }


def prompt_logprobs(output: RequestOutput, num_likely: int) -> list[dict[str, Any] | None]:
    """Of a prompt's tokens and of so many likely ones each, which may be fewer than `echo` needs."""
    assert output.prompt_logprobs is not None, "the line asks for them"
    pairs = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
    return by_token_id(
        None
        if tokens is None
        else {
            other: logprob
            for other, logprob in tokens.items()
            if other == token_id or (logprob.rank or 0) <= num_likely
        }
        for token_id, tokens in pairs
    )


def completions_logprobs(
    token_ids: Sequence[int],
    positions: Sequence[Tokens | None],
    text_offset: Sequence[int] | None,
    first_token: str | None,
) -> dict[str, Any]:
    """OpenAI's lists, one entry per token; null for the first token of a prompt, which follows none: only its
    text is known. Without offsets there is no text, and all begin at 0."""
    pairs = list(zip(token_ids, positions, strict=True))
    chosen = [None if tokens is None else tokens[token_id] for token_id, tokens in pairs]
    first = Logprob(0.0, None, first_token)
    return {
        "tokens": [
            _text(token_id, logprob or first) for (token_id, _), logprob in zip(pairs, chosen, strict=True)
        ],
        "token_logprobs": [None if logprob is None else finite(logprob.logprob) for logprob in chosen],
        "top_logprobs": [None if tokens is None else _by_text(tokens) for tokens in positions],
        "text_offset": [0] * len(pairs) if text_offset is None else list(text_offset),
    }


def _by_text(tokens: Tokens) -> dict[str, float]:
    """Log-probabilities by text; of tokens with the same text all but the likeliest one go by their id."""
    by_text: dict[str, float] = {}
    for token_id, logprob in _likeliest_first(tokens):
        text = _text(token_id, logprob)
        by_text[_id_text(token_id) if text in by_text else text] = finite(logprob.logprob)
    return by_text


def chat_logprobs(token_id: int, tokens: Tokens, params: SamplingParams) -> dict[str, Any]:
    """OpenAI's object for one token. Its alternatives are those that the line asks for; the token itself is
    among them only where the line asks for it, too."""
    named = set(params.logprob_token_ids or ())
    top = [
        _chat_token(other, logprob)
        for other, logprob in _likeliest_first(tokens)
        if other in named or (logprob.rank is not None and logprob.rank <= (params.logprobs or 0))
    ]
    return {**_chat_token(token_id, tokens[token_id]), "top_logprobs": top}


def _chat_token(token_id: int, logprob: Logprob) -> dict[str, Any]:
    raw = None if logprob.token_bytes is None else list(logprob.token_bytes)
    return {"token": _text(token_id, logprob), "logprob": finite(logprob.logprob), "bytes": raw}


def _likeliest_first(tokens: Tokens) -> list[tuple[int, Logprob]]:
    return sorted(tokens.items(), key=lambda item: (-item[1].logprob, item[0]))


def _text(token_id: int, logprob: Logprob) -> str:
    return _id_text(token_id) if logprob.decoded_token is None else logprob.decoded_token


def _id_text(token_id: int) -> str:
    """vLLM's name of a token without a text."""
    return f"token_id:{token_id}"


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold. Raises ValueError for what is no number."""
    if math.isnan(logprob):
        raise ValueError("a log-probability is not a number")
    return max(logprob, LEAST_LOGPROB)
