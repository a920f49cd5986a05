"""Broken JSONL lines from seeds, and what must hold of any line at all."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable
from typing import Any

from jbatch.jobs.line_forms import CHAT_FIELDS, IGNORED, REFUSED
from jbatch.jobs.request_line import LineError, RequestLine, parse_line
from jbatch.jobs.results import Echo, Failure, dump, error_result, success_result
from jbatch.outputs import CompletionOutput, FinishReason, Logprob, RequestOutput
from jbatch.sampling_params import SamplingParams

CODES = {"line_too_long", "invalid_json", "unknown_field", "unsupported_field", "invalid_request"}
VALUES: list[Any] = [
    *(None, -1, 0, 1, 1.5, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**400, 1e308, -0.0),
    *(math.nan, math.inf, -math.inf, "1", "", "x" * 257, "\u2028\x00\r\n", "\ud800", True, False),
    *([], {}, [None], [1, "x"], [[1], [2]], ["a", "b"], ["x"] * 17, list(range(33)), [-1], [2**31], [True]),
    *({"0": 1}, {"01": 1}, {"x": 1}, {"1": math.nan}, {"role": "user"}, [{"role": "user", "content": "hi"}]),
]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    {"role": "user", "content": "日本 👩‍👩‍👧", "name": "Ann"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
SAMPLING = {
    "n": 2, "presence_penalty": 0.5, "frequency_penalty": -1, "repetition_penalty": 1.1, "temperature": 0.7,
    "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7, "stop": ["\n", "END"], "stop_token_ids": [2],
    "ignore_eos": True, "max_tokens": 16, "min_tokens": 2, "prompt_logprobs": 1, "logprob_token_ids": [3, 4],
    "skip_special_tokens": False, "include_stop_str_in_output": True, "logit_bias": {"5": -100, "17": 2.5},
    "allowed_token_ids": [5, 6, 7], "bad_words": ["no"], "truncate_prompt_tokens": 5,
}  # fmt: skip
HARMLESS = {"model": "demo", "user": 7, "metadata": {"a": [None]}, "stream": False, "tools": [], "echo": None}


def batch_line(url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": "a-1", "method": "POST", "url": url, "body": body}


TEMPLATES: list[dict[str, Any]] = [
    {"prompt": "Hello"},
    {"custom_id": "a", "prompt": "Hello", **SAMPLING, "logprobs": 3, "detokenize": True},
    {"custom_id": "b", "prompt_token_ids": [1, 2, 3], "stop": "x"},
    {"custom_id": "c", "messages": MESSAGES, **HARMLESS, "continue_final_message": True},
    batch_line("/v1/completions", prompt="Hello"),
    batch_line("/v1/completions", prompt=[1, 2, 3], **SAMPLING, **HARMLESS, logprobs=0),
    batch_line("/completions", prompt=["Hello", [1, 2]], echo=True, logprobs=1, n=2),
    batch_line("/v1/chat/completions", messages=MESSAGES[:1]),
    batch_line("/v1/chat/completions", messages=MESSAGES, **SAMPLING, **HARMLESS, logprobs=True,
               top_logprobs=2, max_completion_tokens=16),
    batch_line("/chat/completions", messages=MESSAGES, tools=TOOLS, chat_template="{{ messages }}",
               chat_template_kwargs={"enable_thinking": False}, add_generation_prompt=False),
]  # fmt: skip
FIELDS = sorted({*SamplingParams.__dataclass_fields__, *IGNORED, *REFUSED, "prompt", "prompt_token_ids",
                 "messages", "echo", *CHAT_FIELDS, "custom_id", "method", "url", "body", "top_logprobs",
                 "max_completion_tokens", "temprature", ""})  # fmt: skip
FRAGMENTS = [
    *(b"\xef\xbb\xbf", b"\r\n", b"\r", "\u2028".encode(), b"\x00", b"\\u0000", b"\xff", b"\xed\xa0\x80"),
    *(b"\\ud800", b"\\udc00\\ud800", b"\\ud83d\\ude00", b"NaN", b"-Infinity", b"1e999", b"-", b"01", b"\\"),
    *(b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"null", b'"custom_id":"a"', b'"n":1,', b" ", b"\t"),
    *(b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b"[" * 150 + b"]" * 150, b"x" * 100_000),
]


def check_seed(seed: int) -> None:
    """Make a line from a seed, and check it."""
    check_line(make_line(random.Random(seed)))


def make_line(rng: random.Random) -> bytes:
    """One line, mostly broken in one or two places, first as values and then as bytes."""
    line = copy.deepcopy(rng.choice(TEMPLATES))
    for _ in range(rng.choice([0, 1, 1, 2])):
        rng.choice(CHANGES)(line, rng)
    raw = json.dumps(line, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 1, 3])):
        raw = rng.choice(DAMAGES)(raw, rng)
    return raw + rng.choice([b"\n", b"\r\n", b""])


def _objects(value: Any) -> list[dict[str, Any]]:
    """All objects within a value, itself included."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] * isinstance(value, dict) + [inner for item in inside for inner in _objects(item)]


def _set(line: dict[str, Any], rng: random.Random) -> None:
    rng.choice(_objects(line))[rng.choice(FIELDS)] = copy.deepcopy(rng.choice(VALUES))


def _replace(line: dict[str, Any], rng: random.Random) -> None:
    place = rng.choice(_objects(line))
    if place:
        place[rng.choice(sorted(place))] = copy.deepcopy(rng.choice(VALUES))


def _delete(line: dict[str, Any], rng: random.Random) -> None:
    place = rng.choice(_objects(line))
    if place:
        del place[rng.choice(sorted(place))]


def _misspell(line: dict[str, Any], rng: random.Random) -> None:
    place = rng.choice(_objects(line))
    if place:
        name = rng.choice(sorted(place))
        at = rng.randrange(len(name) + 1)
        place[name[:at] + rng.choice(["x", "", "_", "\u2028", "\n", "{"]) + name[at + 1 :]] = place.pop(name)


def _wrap(line: dict[str, Any], rng: random.Random) -> None:
    place = rng.choice(_objects(line))
    if place:
        name = rng.choice(sorted(place))
        for _ in range(rng.choice([1, 2, 190])):
            place[name] = [place[name]]


CHANGES: list[Callable[[dict[str, Any], random.Random], None]] = [
    _set,
    _set,
    _replace,
    _delete,
    _misspell,
    _wrap,
]


def _flip(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) or 1)
    return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]


def _cut(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


def _drop(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + raw[at + rng.randrange(1, 20) :]


def _insert(raw: bytes, rng: random.Random) -> bytes:
    at = rng.choice([0, rng.randrange(len(raw) + 1), len(raw)])
    return raw[:at] + rng.choice(FRAGMENTS) + raw[at:]


def _instead_of_a_value(raw: bytes, rng: random.Random) -> bytes:
    """A fragment between a colon and the next comma or bracket."""
    at = raw.find(b": ", rng.randrange(len(raw) + 1)) + 2
    ends = [end for mark in b",}]" if (end := raw.find(mark, at)) >= 0]
    return raw[:at] + rng.choice(FRAGMENTS) + raw[min(ends, default=len(raw)) :]


def _duplicate(raw: bytes, rng: random.Random) -> bytes:
    """A second value for a key, in front of its object or behind it."""
    pair = f"{json.dumps(rng.choice(FIELDS))}: {json.dumps(rng.choice(VALUES))}".encode()
    at = raw.rfind(b"}", 0, rng.choice([len(raw), len(raw) - 1, -1]))
    return raw.replace(b"{", b"{" + pair + b", ", 1) if at < 0 else raw[:at] + b", " + pair + raw[at:]


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    *(_flip, _cut, _drop, _insert, _insert, _instead_of_a_value, _duplicate)
]


def check_line(raw: bytes) -> RequestLine | LineError:
    """What parse_line makes of a line: a RequestLine that says the same again as a line, or a LineError with
    one readable line; and a result of either that any JSON parser reads."""
    try:
        line = parse_line(raw, {})
    except LineError as error:
        assert error.code in CODES, error.code
        assert len(error.message.splitlines()) == 1 and len(error.message) < 1000, error.message
        assert error.field is None or error.field in error.message, error.message
        custom_id = error.custom_id or "line-1"
        failure = Failure(error.code, error.message, error.field)
        assert_strict_json(error_result(error.form, custom_id, 1, failure))
        return error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}: of {raw[:300]!r}") from error
    again = [parse_line(json.dumps(asked).encode(), {}) for asked in as_bare_lines(line)]
    assert tuple(prompt for one in again for prompt in one.prompts) == line.prompts
    assert all(one[3:5] == line[3:5] for one in again), f"{again} instead of {line}"
    custom_id, output = line.custom_id or "line-1", made_up_output(line.params)
    echoes = [[Echo("hi", "h", None)] * line.params.n] * line.num_prompts if line.echo else []
    assert_strict_json(success_result(line, custom_id, [output] * line.num_prompts, echoes))
    return line


def as_bare_lines(line: RequestLine) -> list[dict[str, Any]]:
    """Lines that ask for the same, one for each prompt."""
    params = {name: value for name, value in dataclasses.asdict(line.params).items() if value not in ((), {})}
    if line.chat is not None:
        return [{"messages": line.chat.messages, **dataclasses.asdict(line.chat.options), **params}]
    return [
        {"prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt, **params}
        for prompt in line.prompts
    ]


def made_up_output(params: SamplingParams, *, text: str = "a\u2028\n\x00") -> RequestOutput:
    """An output with all that its parameters ask for."""
    tokens = {
        5: Logprob(-0.5, 1, "a", b"a"),
        6: Logprob(-math.inf, 9, "bytes:\\xe6", b"\xe6"),
        7: Logprob(-1.0, 2),
    }
    logprobs = None if params.logprobs is None else [tokens, dict(itertools.islice(tokens.items(), 2))]
    outputs = [
        CompletionOutput(
            i, text, [5, 6], FinishReason.STOP, "x", logprobs, None if logprobs is None else -1.5
        )
        for i in range(params.n)
    ]
    of_prompt = None if params.prompt_logprobs is None else [None, tokens]
    return RequestOutput("r", "hi", [1, 5], outputs, prompt_logprobs=of_prompt)


def assert_strict_json(result: dict[str, Any]) -> None:
    """A result is one line of ASCII, and any parser gets it back."""
    raw = dump(result)
    assert raw.isascii() and raw.endswith(b"\n") and raw.count(b"\n") == 1 and b"\r" not in raw

    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} in {raw[:300]!r}")

    assert json.loads(raw, parse_constant=refuse) == json.loads(json.dumps(result))
