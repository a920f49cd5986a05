"""What a JSONL job writes: one result per line of its input. docs/jsonl.md shows each form.

A result depends on its request and its answer alone: no clock and no random ids, so that a job that was
resumed writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jbatch.jobs.logprob_forms import (
    Tokens,
    by_token_id,
    chat_logprobs,
    completions_logprobs,
    finite,
    prompt_logprobs,
)
from jbatch.outputs import CompletionOutput, RequestOutput
from jbatch.sampling_params import SamplingParams

if TYPE_CHECKING:  # it needs pydantic
    from jbatch.jobs.request_line import Form, RequestLine

OK, REFUSED, FAILED = 200, 400, 500  # HTTP's
SERVER_ERRORS = ("generation_failed", "internal_error")  # codes of requests that were right
OBJECTS = {"completions": ("text_completion", "cmpl"), "chat": ("chat.completion", "chatcmpl")}


class Failure(NamedTuple):
    """Why a line has no answer."""

    code: str
    message: str
    field: str | None = None  # of the line, where it is one


class Echo(NamedTuple):
    """A prompt, to be shown in front of an answer."""

    text: str
    first_token: str | None  # the text of the first token, of which nothing else is known
    text_offset: Sequence[int] | None  # where its tokens begin in the text


class _Shown(NamedTuple):
    """A sample, with what is shown of its prompt."""

    sample: CompletionOutput
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Tokens | None] | None
    text_offset: Sequence[int] | None
    first_token: str | None = None


def success_result(
    line: RequestLine, custom_id: str, outputs: Sequence[RequestOutput], echoes: Sequence[Sequence[Echo]] = ()
) -> dict[str, Any]:
    """The result of a line that was answered: of each of its prompts, some samples at least.

    Args:
      outputs: of its prompts, in order.
      echoes: of its prompts, for each sample, where the line asks for them.
    """
    if line.form == "bare":
        return {"custom_id": custom_id, **_bare_answer(outputs[0]), "usage": _usage(outputs)}
    name, prefix = OBJECTS[line.form]
    key = _key(custom_id)
    body: dict[str, Any] = {
        "id": f"{prefix}-{key}",
        "object": name,
        "created": 0,
        "model": line.model or "",
        **_choices(line, outputs, echoes),
        "usage": _usage(outputs),
    }
    if line.prompt_logprobs is not None:
        of_prompts = [prompt_logprobs(output, line.prompt_logprobs) for output in outputs]
        body["prompt_logprobs"] = of_prompts[0] if len(of_prompts) == 1 else of_prompts
    return _envelope(custom_id, OK, body)


def error_result(form: Form | None, custom_id: str, line_no: int, failure: Failure) -> dict[str, Any]:
    """The result of a line that was refused, or of a request that failed. An OpenAI line's is a response, as
    in OpenAI's own files: the request was made, and refused.

    Args:
      form: None where it could not be told: there was no request, and the error stands alone.
      line_no: of the input, from 1.
    """
    if form is None or form == "bare":
        error = {"code": failure.code, "message": failure.message, "line": line_no}
        if form == "bare":
            return {"custom_id": custom_id, "error": error}
        return {
            "id": f"batch_req_{_key(custom_id)}",
            "custom_id": custom_id,
            "response": None,
            "error": error,
        }
    ours = failure.code in SERVER_ERRORS
    error = {
        "message": failure.message,
        "type": "server_error" if ours else "invalid_request_error",
        "param": failure.field,
        "code": failure.code,
        "line": line_no,
    }
    return _envelope(custom_id, FAILED if ours else REFUSED, {"error": error})


def _envelope(custom_id: str, status_code: int, body: dict[str, Any]) -> dict[str, Any]:
    key = _key(custom_id)
    response = {"status_code": status_code, "request_id": f"req-{key}", "body": body}
    return {"id": f"batch_req_{key}", "custom_id": custom_id, "response": response, "error": None}


def dump(result: dict[str, Any]) -> bytes:
    """A result as one line of ASCII. Raises ValueError for a number that is not finite."""
    text = json.dumps(result, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def _key(custom_id: str) -> str:
    """What the ids of a result are made of: the same for the same custom_id, however long that is."""
    return hashlib.sha256(custom_id.encode()).hexdigest()[:24]


def _usage(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    completion = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(output.num_cached_tokens for output in outputs)},
    }


def _bare_answer(output: RequestOutput) -> dict[str, Any]:
    """vLLM's fields; flat for one sample, a list `outputs` for several."""
    answers = [_bare_output(sample) for sample in output.outputs]
    if len(answers) == 1:
        answer = answers[0]
    else:
        indices = [sample.index for sample in output.outputs]
        answer = {"outputs": [{"index": idx, **flat} for idx, flat in zip(indices, answers, strict=True)]}
    if output.prompt_logprobs is not None:
        answer["prompt_logprobs"] = by_token_id(output.prompt_logprobs)
    return answer


def _bare_output(sample: CompletionOutput) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "text": sample.text,
        "token_ids": sample.token_ids,
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
    }
    if sample.logprobs is not None:
        answer["logprobs"] = by_token_id(sample.logprobs)
    if sample.cumulative_logprob is not None:
        answer["cumulative_logprob"] = finite(sample.cumulative_logprob)
    return _with_error(answer, sample)


def _with_error(answer: dict[str, Any], sample: CompletionOutput) -> dict[str, Any]:
    """The answer with the reason why this sample failed, where it did and others did not."""
    return answer if sample.error is None else {**answer, "error": sample.error}


def _choices(
    line: RequestLine, outputs: Sequence[RequestOutput], echoes: Sequence[Sequence[Echo]]
) -> dict[str, Any]:
    """The samples of all prompts, in order. What failed beside others that did not has no choice: there is no
    finish_reason for it that OpenAI's clients know."""
    choices, errors = [], []
    for prompt_idx, output in enumerate(outputs):
        of_samples = echoes[prompt_idx] if echoes else [None] * len(output.outputs)
        for sample, echo in zip(output.outputs, of_samples, strict=True):
            idx = prompt_idx * line.params.n + sample.index
            if sample.error is not None:
                errors.append({"index": idx, "message": sample.error})
            elif line.form == "chat":
                choices.append(_chat_choice(idx, sample, line.params))
            else:
                choices.append(_completions_choice(idx, _shown(sample, output, echo)))
    return {"choices": choices, **({"errors": errors} if errors else {})}


def _shown(sample: CompletionOutput, output: RequestOutput, echo: Echo | None) -> _Shown:
    if echo is None:
        return _Shown(sample, sample.text, sample.token_ids, sample.logprobs, sample.text_offset)
    token_ids = output.prompt_token_ids + sample.token_ids
    logprobs, offsets = None, None
    if output.prompt_logprobs is not None and sample.logprobs is not None:
        logprobs = output.prompt_logprobs + sample.logprobs
    if echo.text_offset is not None and sample.text_offset is not None:
        offsets = [*echo.text_offset, *(len(echo.text) + offset for offset in sample.text_offset)]
    return _Shown(sample, echo.text + sample.text, token_ids, logprobs, offsets, echo.first_token)


def _completions_choice(index: int, shown: _Shown) -> dict[str, Any]:
    logprobs = None
    if shown.logprobs is not None:
        logprobs = completions_logprobs(shown.token_ids, shown.logprobs, shown.text_offset, shown.first_token)
    return {
        "index": index,
        "text": shown.text,
        "logprobs": logprobs,
        "finish_reason": shown.sample.finish_reason,
        "stop_reason": shown.sample.stop_reason,
    }


def _chat_choice(index: int, sample: CompletionOutput, params: SamplingParams) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "message": {"role": "assistant", "content": sample.text},
        "logprobs": None,
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
    }
    if sample.logprobs is not None:
        content = [
            chat_logprobs(*pair, params) for pair in zip(sample.token_ids, sample.logprobs, strict=True)
        ]
        choice["logprobs"] = {"content": content}
    return choice
