"""One line of a JSONL job, read and checked: what to ask the engine, or an error that names what is wrong.

What a sampling parameter may be is written once, in `SamplingParams`; the other fields are in `line_forms`.
docs/jsonl.md shows all of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jbatch.engine.prompts import NO_WISHES
from jbatch.engine.wishes import WISHES
from jbatch.errors import MAX_NAME_CHARS, JBatchError, RequestError
from jbatch.jobs.line_forms import (
    CHAT_FIELDS,
    MAX_CUSTOM_ID_CHARS,
    SAMPLING_FIELDS,
    Bare,
    Chat,
    Completions,
    Envelope,
    check_form,
    load_json,
)
from jbatch.sampling_params import SamplingParams
from jbatch.text.chat_options import ChatOptions
from jbatch.text.messages import Message

MAX_LINE_BYTES = 8 * 2**20

NO_OPTIONS = ChatOptions()
Form = Literal["bare", "completions", "chat"]  # how the answer is shaped
FORMS: dict[str, Form] = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/completions": "completions",  # Azure's
    "/chat/completions": "chat",
}


class ChatLine(NamedTuple):
    """A conversation, and how it becomes a prompt."""

    messages: tuple[Message, ...]
    options: ChatOptions = NO_OPTIONS


class RequestLine(NamedTuple):
    """A checked line: what to ask the engine, and how to shape the answer."""

    form: Form
    custom_id: str | None  # None: a bare line without one
    prompts: tuple[str | tuple[int, ...], ...]  # texts or token ids; none where there is a chat
    chat: ChatLine | None
    params: SamplingParams  # of each prompt
    model: str | None = None  # as the line names it: the answer repeats it
    echo: bool = False  # show the prompt in front of each answer
    prompt_logprobs: int | None = None  # to show by themselves; `params` may ask for more, for `echo`
    cache_salt: str | None = None
    wishes: Mapping[str, Any] = NO_WISHES  # what a policy may go by

    @property
    def num_prompts(self) -> int:
        return len(self.prompts) or 1


class LineError(JBatchError, ValueError):
    """A line that asks for nothing that can be served; the others of its file go on.

    Attributes:
      code: a stable name: line_too_long, invalid_json, unknown_field, unsupported_field, invalid_request.
      message: one line that says what is wrong, with the field, its value and what it may be.
      field: the path of the field, where there is one.
      custom_id, form: of the line, where they could be read.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        custom_id: str | None = None,
        form: Form | None = None,
    ):
        self.code, self.message, self.field = code, message, field
        self.custom_id, self.form = custom_id, form
        super().__init__(message)


def parse_line(raw: bytes, defaults: Mapping[str, Any]) -> RequestLine:
    """Read and check one line, its end-of-line and a byte-order mark in front allowed.

    The last of duplicate keys wins. A field that is null is as good as missing.

    Args:
      defaults: sampling parameters, for lines that do not set them.

    Raises:
      LineError: for whatever is wrong with it.
    """
    data = _load(raw)
    form = _form(data)
    try:
        if form == "bare":
            return _request(form, check_form(Bare, data), defaults)
        envelope = check_form(Envelope, data)
        form = FORMS[envelope["url"]]
        body = check_form(Completions if form == "completions" else Chat, envelope["body"])
        return _request(form, {**body, "custom_id": envelope["custom_id"]}, defaults)
    except RequestError as error:
        custom_id = _valid_custom_id(data.get("custom_id"))
        raise LineError(error.code, str(error), field=error.field, custom_id=custom_id, form=form) from None


def _load(raw: bytes) -> dict[str, Any]:
    """The JSON object of a line."""
    if len(raw) > MAX_LINE_BYTES:
        reason = f"the line has more than {MAX_LINE_BYTES} bytes"
        raise LineError("line_too_long", reason, custom_id=_first_custom_id(raw))
    if (encoding := wide_encoding(raw)) is not None:
        raise LineError("invalid_json", f"no valid JSON: the line is {encoding}, and must be UTF-8")
    try:
        data = load_json(raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n"))
    except ValueError as error:
        reason = str(error).replace("at line 1 column", "at byte")
        if "hex escape" in reason:
            reason += r" (one of \ud800 to \udfff alone is half a character)"
        custom_id = _first_custom_id(raw)
        raise LineError("invalid_json", f"no valid JSON: {reason}", custom_id=custom_id) from None
    if not isinstance(data, dict):
        raise LineError("invalid_request", f"must be a JSON object, and is of type {type(data).__name__}")
    return data


def wide_encoding(raw: bytes) -> str | None:
    """UTF-16 or UTF-32, where the beginning of a line or a file looks like it: JSON begins with ASCII, which
    has NULs beside it there. None for what is neither."""
    if raw.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) or raw[:4].count(0) == 3:
        return "UTF-32"
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(raw) > 1 and raw[:2].count(0) == 1):
        return "UTF-16"
    return None


def _first_custom_id(raw: bytes) -> str | None:
    """The custom_id of a line that cannot be read, where it comes first, as it mostly does."""
    match = re.match(rb'(?:\xef\xbb\xbf)?\s*\{\s*"custom_id"\s*:\s*("(?:[^"\\]|\\.){1,3072}")', raw)
    try:
        return _valid_custom_id(load_json(match[1])) if match else None
    except ValueError:
        return None


def _valid_custom_id(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_CUSTOM_ID_CHARS else None


def _form(data: Mapping[str, Any]) -> Form | None:
    """Which form a line has; None for an OpenAI line whose URL is none of ours."""
    if data.keys().isdisjoint(("method", "url", "body")):
        return "bare"
    url = data.get("url")
    return FORMS.get(url) if isinstance(url, str) else None


# From checked fields to what the engine takes.


def _request(form: Form, fields: dict[str, Any], defaults: Mapping[str, Any]) -> RequestLine:
    given = [name for name in ("prompt", "prompt_token_ids", "messages") if name in fields]
    if len(given) != 1:
        reason = "a line has one of prompt, prompt_token_ids and messages"
        raise RequestError("prompt", " and ".join(given) or None, reason)
    model = fields.get("model")
    params = _params(fields, defaults, chat=form == "chat")
    line = RequestLine(
        form=form,
        custom_id=fields.get("custom_id"),
        prompts=_prompts(fields.get("prompt", fields.get("prompt_token_ids"))),
        chat=_chat(fields),
        params=params,
        model=model if isinstance(model, str) else None,
        prompt_logprobs=params.prompt_logprobs,
        cache_salt=fields.get("cache_salt"),
        wishes={name: fields[name] for name in WISHES if _is_wish(name, fields)} or NO_WISHES,
    )
    return _echoing(line) if fields.get("echo") else line


def _is_wish(name: str, fields: Mapping[str, Any]) -> bool:
    """Whether a field is there; OpenAI's `user` may be anything, and is somebody where it is a text."""
    return name in fields and (name != "user" or isinstance(fields[name], str))


def _prompts(given: Any) -> tuple[str | tuple[int, ...], ...]:
    """The prompts of a line: a text or token ids, or a list of these."""
    if given is None:
        return ()
    if isinstance(given, str):
        return (given,)
    if isinstance(given[0], int):
        return (tuple(given),)
    return tuple(tuple(prompt) if isinstance(prompt, list) else prompt for prompt in given)


def _chat(fields: dict[str, Any]) -> ChatLine | None:
    options = {name: fields[name] for name in CHAT_FIELDS if name in fields}
    if "messages" in fields:
        return ChatLine(fields["messages"], ChatOptions(**options) if options else NO_OPTIONS)
    for name, value in options.items():
        if value not in ([], {}):
            raise RequestError(name, value, "takes messages", code="unsupported_field")
    return None


def _echoing(line: RequestLine) -> RequestLine:
    """The line with the log-probabilities of its prompt, where those of its answer are asked for."""
    params = line.params
    if params.logprobs is not None:
        most = max(params.logprobs, params.prompt_logprobs or 0)
        params = dataclasses.replace(params, prompt_logprobs=most)
    return line._replace(params=params, echo=True)


def _params(fields: dict[str, Any], defaults: Mapping[str, Any], *, chat: bool) -> SamplingParams:
    given = {name: fields[name] for name in SAMPLING_FIELDS if name in fields}
    renamed: dict[str, str] = {}  # what an error must call them, where that is not vLLM's name
    if chat:
        renamed = _chat_names(fields, given)
    if "logit_bias" in given:
        given["logit_bias"] = _by_token_id(given["logit_bias"])
    try:
        return SamplingParams(**{**defaults, **given})
    except RequestError as error:
        raise RequestError(renamed.get(error.field, error.field), error.value, error.reason) from None


def _chat_names(fields: dict[str, Any], given: dict[str, Any]) -> dict[str, str]:
    """Put chat's own parameters into `given` under vLLM's names; gives chat's names by these."""
    renamed = {}
    limit = fields.get("max_completion_tokens")
    if limit is not None:
        if given.get("max_tokens", limit) != limit:
            raise RequestError("max_completion_tokens", limit, f"max_tokens says {given['max_tokens']!r}")
        given["max_tokens"], renamed["max_tokens"] = limit, "max_completion_tokens"
    top = fields.get("top_logprobs")
    if given.get("logprobs"):
        given["logprobs"], renamed["logprobs"] = 0 if top is None else top, "top_logprobs"
    elif top is not None and top != 0:
        raise RequestError("top_logprobs", top, "takes logprobs: true")
    elif "logprobs" in given:
        given["logprobs"] = None
    return renamed


def _by_token_id(bias: Any) -> Any:
    """A logit_bias with token ids as keys, which are texts in JSON."""
    if not isinstance(bias, dict):
        return bias  # SamplingParams says what it must be
    for key in bias:
        if not re.fullmatch(r"0|[1-9][0-9]{0,9}", key):
            raise RequestError("logit_bias", key[:MAX_NAME_CHARS], "a key must be a token id")
    return {int(key): value for key, value in bias.items()}
