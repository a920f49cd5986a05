"""What a JSONL job writes: one result per line of its input. docs/jsonl.md shows each form.

A result depends on its request and its answer alone: no clock and no random ids, so that a job that was
resumed writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jbatch.outputs import CompletionOutput, Logprob, RequestOutput
from jbatch.sampling_params import SamplingParams

if TYPE_CHECKING:  # it needs pydantic
    from jbatch.jobs.request_line import Form, RequestLine

LEAST_LOGPROB = -9999.0  # JSON has no infinity; vLLM's value
OBJECTS = {"completions": ("text_completion", "cmpl"), "chat": ("chat.completion", "chatcmpl")}


def success_result(line: RequestLine, custom_id: str, output: RequestOutput) -> dict[str, Any]:
    """The result of a request that was answered, by some of its samples at least."""
    if line.form == "bare":
        return {"custom_id": custom_id, **_bare_answer(output), "usage": _usage(output)}
    name, prefix = OBJECTS[line.form]
    key = _key(custom_id)
    if line.form == "completions":
        choices = [_completions_choice(sample) for sample in output.outputs]
    else:
        choices = [_chat_choice(sample, line.params) for sample in output.outputs]
    body: dict[str, Any] = {
        "id": f"{prefix}-{key}",
        "object": name,
        "created": 0,
        "model": line.model or "",
        "choices": choices,
        "usage": _usage(output),
    }
    if output.prompt_logprobs is not None:
        body["prompt_logprobs"] = _by_token_id(output.prompt_logprobs)
    response = {"status_code": 200, "request_id": f"req-{key}", "body": body}
    return {"id": f"batch_req_{key}", "custom_id": custom_id, "response": response, "error": None}


def error_result(form: Form | None, custom_id: str, line_no: int, code: str, message: str) -> dict[str, Any]:
    """The result of a line that was refused, or of a request that failed.

    Args:
      form: None where it could not be told; the result then has OpenAI's form, which has all of the others.
      line_no: of the input, from 1.
    """
    error: dict[str, Any] = {"code": code, "message": message, "line": line_no}
    if form == "bare":
        return {"custom_id": custom_id, "error": error}
    return {"id": f"batch_req_{_key(custom_id)}", "custom_id": custom_id, "response": None, "error": error}


def dump(result: dict[str, Any]) -> bytes:
    """A result as one line of ASCII. Raises ValueError for a number that is not finite."""
    text = json.dumps(result, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def _key(custom_id: str) -> str:
    """What the ids of a result are made of: the same for the same custom_id, however long that is."""
    return hashlib.sha256(custom_id.encode()).hexdigest()[:24]


def _usage(output: RequestOutput) -> dict[str, int]:
    prompt = len(output.prompt_token_ids)
    completion = sum(len(sample.token_ids) for sample in output.outputs)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _bare_answer(output: RequestOutput) -> dict[str, Any]:
    """vLLM's fields; flat for one sample, a list `outputs` for several."""
    answers = [_bare_output(sample) for sample in output.outputs]
    if len(answers) == 1:
        answer = answers[0]
    else:
        indices = [sample.index for sample in output.outputs]
        answer = {"outputs": [{"index": idx, **flat} for idx, flat in zip(indices, answers, strict=True)]}
    if output.prompt_logprobs is not None:
        answer["prompt_logprobs"] = _by_token_id(output.prompt_logprobs)
    return answer


def _bare_output(sample: CompletionOutput) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "text": sample.text,
        "token_ids": sample.token_ids,
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
    }
    if sample.logprobs is not None:
        answer["logprobs"] = _by_token_id(sample.logprobs)
    if sample.cumulative_logprob is not None:
        answer["cumulative_logprob"] = _finite(sample.cumulative_logprob)
    return _with_error(answer, sample)


def _with_error(answer: dict[str, Any], sample: CompletionOutput) -> dict[str, Any]:
    """The answer with the reason why this sample failed, where it did and others did not."""
    return answer if sample.error is None else {**answer, "error": sample.error}


def _by_token_id(positions: Iterable[dict[int, Logprob] | None]) -> list[dict[str, Any] | None]:
    """vLLM's form: per position, a token's log-probability, rank and text by its id."""
    return [
        None if tokens is None else {str(token_id): _flat(logprob) for token_id, logprob in tokens.items()}
        for tokens in positions
    ]


def _flat(logprob: Logprob) -> dict[str, Any]:
    return {
        "logprob": _finite(logprob.logprob),
        "rank": logprob.rank,
        "decoded_token": logprob.decoded_token,
    }


def _completions_choice(sample: CompletionOutput) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": sample.index,
        "text": sample.text,
        "logprobs": None,
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
    }
    if sample.logprobs is not None:
        choice["logprobs"] = _completions_logprobs(sample.token_ids, sample.logprobs, sample.text_offset)
    return _with_error(choice, sample)


def _chat_choice(sample: CompletionOutput, params: SamplingParams) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": sample.index,
        "message": {"role": "assistant", "content": sample.text},
        "logprobs": None,
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
    }
    if sample.logprobs is not None:
        content = [
            _chat_logprobs(*pair, params) for pair in zip(sample.token_ids, sample.logprobs, strict=True)
        ]
        choice["logprobs"] = {"content": content}
    return _with_error(choice, sample)


def _completions_logprobs(
    token_ids: Sequence[int],
    positions: Sequence[Mapping[int, Logprob]],
    text_offset: Sequence[int] | None,
) -> dict[str, Any]:
    """OpenAI's lists, one entry per token. Without offsets there is no text, and all begin at 0."""
    chosen = [tokens[token_id] for token_id, tokens in zip(token_ids, positions, strict=True)]
    return {
        "tokens": [_text(token_id, logprob) for token_id, logprob in zip(token_ids, chosen, strict=True)],
        "token_logprobs": [_finite(logprob.logprob) for logprob in chosen],
        "top_logprobs": [_by_text(tokens) for tokens in positions],
        "text_offset": [0] * len(token_ids) if text_offset is None else list(text_offset),
    }


def _by_text(tokens: Mapping[int, Logprob]) -> dict[str, float]:
    """Log-probabilities by text; of tokens with the same text all but the likeliest one go by their id."""
    by_text: dict[str, float] = {}
    for token_id, logprob in _likeliest_first(tokens):
        text = _text(token_id, logprob)
        by_text[_id_text(token_id) if text in by_text else text] = _finite(logprob.logprob)
    return by_text


def _chat_logprobs(token_id: int, tokens: Mapping[int, Logprob], params: SamplingParams) -> dict[str, Any]:
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
    return {"token": _text(token_id, logprob), "logprob": _finite(logprob.logprob), "bytes": raw}


def _likeliest_first(tokens: Mapping[int, Logprob]) -> list[tuple[int, Logprob]]:
    return sorted(tokens.items(), key=lambda item: (-item[1].logprob, item[0]))


def _text(token_id: int, logprob: Logprob) -> str:
    return _id_text(token_id) if logprob.decoded_token is None else logprob.decoded_token


def _id_text(token_id: int) -> str:
    """vLLM's name of a token without a text."""
    return f"token_id:{token_id}"


def _finite(logprob: float) -> float:
    """A log-probability that JSON can hold. Raises ValueError for what is no number."""
    if math.isnan(logprob):
        raise ValueError("a log-probability is not a number")
    return max(logprob, LEAST_LOGPROB)
