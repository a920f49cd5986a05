"""Requests and how long their answers were: from a job's files, a trace, or a workload that is made up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.workloads.trace import MAX_TOKENS, read_trace
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
      SamplesError: for a file that cannot be read, for one without answers, and for an input that is of
        other results.
    """
    lines = dict(_read_requests(requests)) if requests is not None else {}
    samples: list[Sample] = []
    known = 0  # results whose line is in the input
    for number, result in _read_lines(results):
        usage = _usage(f"{results}:{number}", result)
        if usage is None:
            continue  # an error
        prompt_len, lengths = usage
        name = str(result.get("custom_id", f"line-{number}"))
        line = lines.get(name, {})
        known += name in lines
        budget = line.get("max_tokens") or line.get("max_completion_tokens") or max_tokens
        budget = _count(f"{requests}: {name}: max_tokens", budget)
        samples += [Sample(made_request(name, prompt_len, budget, _text(line)), length) for length in lengths]
    if not samples:
        raise SamplesError(f"{results}: no line has an answer with usage")
    if requests is not None and not known:
        raise SamplesError(
            f"{requests}: has no line with a custom_id of {results}: is it another job's input?"
        )
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
    for number, line in _read_lines(path):
        body = line.get("body", line)
        yield str(line.get("custom_id", f"line-{number}")), body if isinstance(body, dict) else {}


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """JSON objects, each with the number of its line."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield number, _object(f"{path}:{number}", raw)
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SamplesError(f"{path}: is no text in UTF-8") from None


def _object(where: str, raw: str) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        raise SamplesError(f"{where}: is not JSON: {raw.strip():.60}") from None
    if not isinstance(line, dict):
        raise SamplesError(f"{where}: must be an object")
    return line


def _usage(where: str, result: Mapping[str, Any]) -> tuple[int, Sequence[int]] | None:
    """Prompt tokens, and the output tokens of each answer, as far as a result tells: the mean of several."""
    response = result.get("response")
    body: Any = response.get("body") if isinstance(response, dict) else result
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict) or not usage.get("completion_tokens"):
        return None
    prompt_len, total = (
        _count(f"{where}: usage.{name}", usage.get(name)) for name in ("prompt_tokens", "completion_tokens")
    )
    answers = body.get("choices") or body.get("outputs") or [body]
    if all(isinstance(answer, dict) and isinstance(answer.get("token_ids"), list) for answer in answers):
        return prompt_len, [len(answer["token_ids"]) for answer in answers]
    return prompt_len, [round(total / len(answers))] * len(answers)


def _count(where: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_TOKENS:
        raise SamplesError(f"{where}={value!r:.60}: must be an integer from 1 to {MAX_TOKENS}")
    return value


def _text(line: Mapping[str, Any]) -> str | None:
    """The text of a prompt, or of a conversation's last message."""
    prompt = line.get("prompt")
    if isinstance(prompt, str):
        return prompt
    messages = line.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    return content if isinstance(content, str) else None
