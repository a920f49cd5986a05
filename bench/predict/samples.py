"""Requests and how long their answers were: from a job's files, a trace, or a workload that is made up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.workloads.trace import read_trace
from jbatch.errors import JBatchError
from jbatch.host.request import Request
from jbatch.sampling_params import SamplingParams


class SamplesError(JBatchError, ValueError):
    """Files that hold no lengths: names the file and the line."""


class Sample(NamedTuple):
    """A request as a predictor sees it, and the length of one of its answers."""

    request: Request
    output_len: int


def made_request(request_id: str, prompt_len: int, max_tokens: int, prompt: str | None = None) -> Request:
    """A request of which only sizes and text are known."""
    return Request(request_id, (0,) * max(1, prompt_len), SamplingParams(), max_tokens, (), 0, prompt=prompt)


def read_results(results: Path, requests: Path | None, max_tokens: int) -> list[Sample]:
    """From a job's output, in its order; with texts and `max_tokens` where its input is given, too.

    Args:
      max_tokens: of lines that name none.

    Raises:
      SamplesError: for a file that cannot be read, and for one without answers.
    """
    lines = dict(_read_requests(requests)) if requests is not None else {}
    samples: list[Sample] = []
    for where, result in _read_lines(results):
        usage = _usage(result)
        if usage is None:
            continue  # an error
        prompt_len, lengths = usage
        name = str(result.get("custom_id", where))
        line = lines.get(name, {})
        budget = line.get("max_tokens") or line.get("max_completion_tokens") or max_tokens
        request = made_request(name, prompt_len, budget, _text(line))
        samples += [Sample(request, length) for length in lengths]
    if not samples:
        raise SamplesError(f"{results}: no line has an answer with usage")
    return samples


def from_trace(path: Path, num_requests: int, max_tokens: int) -> list[Sample]:
    """From a trace of lengths, in its order. Raises TraceError."""
    trace = read_trace(path, num_requests)
    lengths = zip(trace.prompt_lens.tolist(), trace.output_lens.tolist(), strict=True)
    return [
        Sample(made_request(str(number), prompt_len, max_tokens), max(1, output_len))
        for number, (prompt_len, output_len) in enumerate(lengths)
    ]


def _read_requests(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, (_, line) in enumerate(_read_lines(path), start=1):
        body = line.get("body", line)
        yield str(line.get("custom_id", f"line-{number}")), body if isinstance(body, dict) else {}


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON objects, with where each is."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                line = json.loads(raw)
                if not isinstance(line, dict):
                    raise SamplesError(f"{path}:{number}: must be an object")
                yield f"line-{number}", line
    except (OSError, ValueError) as error:
        if isinstance(error, SamplesError):
            raise
        raise SamplesError(f"{path}: cannot be read: {error}") from None


def _usage(result: Mapping[str, Any]) -> tuple[int, Sequence[int]] | None:
    """Prompt tokens, and the output tokens of each answer, as far as a result tells: the mean of several."""
    response = result.get("response")
    body: Any = response.get("body") if isinstance(response, dict) else result
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict) or not usage.get("completion_tokens"):
        return None
    answers = body.get("choices") or body.get("outputs") or [body]
    if all(isinstance(answer, dict) and isinstance(answer.get("token_ids"), list) for answer in answers):
        return usage["prompt_tokens"], [len(answer["token_ids"]) for answer in answers]
    return usage["prompt_tokens"], [round(usage["completion_tokens"] / len(answers))] * len(answers)


def _text(line: Mapping[str, Any]) -> str | None:
    """The text of a prompt, or of a conversation's last message."""
    prompt = line.get("prompt")
    if isinstance(prompt, str):
        return prompt
    messages = line.get("messages")
    content = messages[-1].get("content") if isinstance(messages, list) and messages else None
    return content if isinstance(content, str) else None
