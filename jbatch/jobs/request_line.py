"""One line of a JSONL job, checked: an OpenAI batch line or a bare one. The only module that needs pydantic.

What a sampling parameter may be is written once, in `SamplingParams`. Here are the forms of a line, what is
ignored, what is refused, and the bounds of the rest. docs/jsonl.md shows all of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from jbatch.errors import JBatchError, RequestError, check_option_names
from jbatch.sampling_params import MAX_ID, SamplingParams

try:
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Discriminator,
        Field,
        Tag,
        ValidationError,
        create_model,
        model_validator,
    )
    from pydantic_core import PydanticCustomError, from_json
except ImportError as error:  # the engine does without it, and so may a GPU machine
    raise JBatchError(f"JSONL jobs need pydantic ({error}): pip install pydantic") from error

MAX_LINE_BYTES = 8 * 2**20
MAX_CUSTOM_ID_CHARS = 512
MAX_PROMPT_CHARS = 2**20  # of all messages together, too; a tokenizer takes seconds for that
MAX_PROMPT_TOKENS = 2**20
MAX_MESSAGES = 2048
MAX_NAME_CHARS = 64  # of a field, in an error

Form = Literal["bare", "completions", "chat"]  # how the answer is shaped
FORMS: dict[str, Form] = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}

SAMPLING_FIELDS = tuple(SamplingParams.__dataclass_fields__)
IGNORED = ("model", "user", "metadata", "service_tier", "store", "safety_identifier", "prompt_cache_key")
REFUSED: dict[str, tuple[Any, ...]] = {  # unless null or one of these values, which ask for nothing
    **dict.fromkeys(("stream", "echo"), (False,)),
    **dict.fromkeys(("tools", "functions"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "parallel_tool_calls": (False, True),
    "best_of": (1,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    **dict.fromkeys(("stream_options", "structured_outputs", "audio", "prediction", "reasoning_effort"), ()),
    "web_search_options": (),
}


class RequestLine(NamedTuple):
    """A checked line: what to ask the engine, and how to shape the answer."""

    form: Form
    custom_id: str | None  # None: a bare line without one
    prompt: str | tuple[int, ...] | None  # text or token ids; either this or `messages`
    messages: tuple[dict[str, str], ...] | None  # role, content, and name where it was given
    params: SamplingParams
    model: str | None = None  # as the line names it: the answer repeats it


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
            return _request(form, _checked(Bare, data), defaults)
        envelope = _checked(Envelope, data)
        form = FORMS[envelope["url"]]
        body = _checked(Completions if form == "completions" else Chat, envelope["body"])
        return _request(form, {**body, "custom_id": envelope["custom_id"]}, defaults)
    except RequestError as error:
        custom_id = _valid_custom_id(data.get("custom_id"))
        raise LineError(error.code, str(error), field=error.field, custom_id=custom_id, form=form) from None


def _load(raw: bytes) -> dict[str, Any]:
    """The line's JSON object."""
    if len(raw) > MAX_LINE_BYTES:
        reason = f"the line has more than {MAX_LINE_BYTES} bytes"
        raise LineError("line_too_long", reason, custom_id=_first_custom_id(raw))
    try:  # refuses lone surrogates too, nesting of more than 200 and integers of more than 4300 digits
        data = from_json(raw.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError as error:
        reason = str(error).replace("at line 1 column", "at byte")
        if "hex escape" in reason:
            reason += r" (one of \ud800 to \udfff alone is half a character)"
        custom_id = _first_custom_id(raw)
        raise LineError("invalid_json", f"no valid JSON: {reason}", custom_id=custom_id) from None
    if not isinstance(data, dict):
        raise LineError("invalid_request", f"must be a JSON object, and is of type {type(data).__name__}")
    return data


def _first_custom_id(raw: bytes) -> str | None:
    """The custom_id of a line that cannot be read, where it comes first, as it mostly does."""
    found = re.match(rb'(?:\xef\xbb\xbf)?\s*\{\s*"custom_id"\s*:\s*("(?:[^"\\]|\\.){1,3072}")', raw)
    try:
        return _valid_custom_id(from_json(found[1])) if found else None
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


# The models. Sampling parameters may be anything here: SamplingParams checks their types and bounds.


class _Strict(BaseModel):
    """No conversions; a field that is unknown is refused, with the one that may have been meant."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    called: ClassVar[str]  # in errors
    elsewhere: ClassVar[frozenset[str]] = frozenset()  # fields that belong in its body

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.keys() <= cls.model_fields.keys():
            unknown = next(name for name in data if name not in cls.model_fields)
            reason = "belongs in body"
            if unknown not in cls.elsewhere:
                known = [name for name in cls.model_fields if name not in REFUSED]
                try:
                    check_option_names([unknown[:MAX_NAME_CHARS]], known, cls.called)
                except TypeError as error:
                    reason = str(error)
            raise PydanticCustomError("unknown_field", "{reason}", {"field": unknown, "reason": reason})
        return data


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "text"


def _one_prompt(value: Any) -> Any:
    """OpenAI's prompt may be a list of prompts, each of which would get choices of its own."""
    if not isinstance(value, list) or not value or not isinstance(value[0], (str, list)):
        return value
    if len(value) > 1:
        raise PydanticCustomError("several_prompts", "must be one prompt: write one line for each")
    return value[0]


def _nothing_but(values: tuple[Any, ...]) -> Any:
    """A field that may only be said not to be wanted."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in values):
            raise PydanticCustomError("unsupported_field", "is not supported: leave it out")
        return value

    return Annotated[Any, AfterValidator(check)]


CustomId = Annotated[str, Field(min_length=1, max_length=MAX_CUSTOM_ID_CHARS)]
Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_ID)]],
    Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_TOKENS),
]
TextOrTokenIds = Annotated[
    Annotated[Text, Tag("text")] | Annotated[TokenIds, Tag("list")],
    Discriminator(_kind),
    BeforeValidator(_one_prompt),
]


class TextPart(_Strict):
    called = "a part of a content"
    type: Literal["text"]
    text: Text


Content = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_MESSAGES), Tag("list")],
    Discriminator(_kind),
]


class Message(_Strict):
    called = "a message"
    role: Literal["system", "user", "assistant"]
    content: Content
    name: str | None = None


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]


class Envelope(_Strict):
    """An OpenAI batch line."""

    called = "a batch line"
    elsewhere = frozenset((*SAMPLING_FIELDS, *IGNORED, *REFUSED, "prompt", "messages"))
    custom_id: CustomId
    method: Literal["POST"]
    url: Literal["/v1/completions", "/v1/chat/completions"]
    body: dict[str, Any]


def _fields_model(called: str, without: tuple[str, ...] = (), **own: Any) -> Any:
    """A model of sampling parameters, of what is ignored or refused, and of a form's own fields."""
    shared = dict.fromkeys(SAMPLING_FIELDS + IGNORED, Any)
    shared |= {field: _nothing_but(values) for field, values in REFUSED.items()}
    fields: dict[str, Any] = {
        field: (kind, None) for field, kind in shared.items() if field not in (*without, *own)
    }
    model = create_model("Fields", __base__=_Strict, **fields, **own)
    model.called = called
    return model


Bare = _fields_model(
    "a line",
    custom_id=(CustomId, None),
    prompt=(Text, None),
    prompt_token_ids=(TokenIds, None),
    messages=(Messages, None),
)
Completions = _fields_model("a completions body", ("detokenize",), prompt=(TextOrTokenIds, ...))
Chat = _fields_model(
    "a chat body",
    ("detokenize",),
    messages=(Messages, ...),
    logprobs=(bool, None),
    top_logprobs=(Any, None),
    max_completion_tokens=(Any, None),
)


def _checked(model: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are there and not null. Raises RequestError for the first that is wrong."""
    given = {name: value for name, value in data.items() if value is not None}
    try:
        checked = model.model_validate(given)
    except ValidationError as error:
        raise _request_error(given, error.errors(include_url=False)[0]) from None
    return {name: getattr(checked, name) for name in checked.model_fields_set}


def _request_error(data: Any, first: Any) -> RequestError:
    """pydantic's error in our words, with the path of the field and its value."""
    path, value = "", data
    for key in first["loc"]:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):  # a name of pydantic's own: the tag of a union
            continue
        path = _join(path, key)
    code, reason = "invalid_request", _in_our_words(first["msg"])
    if first["type"] == "missing":
        path, value, reason = _join(path, first["loc"][-1]), None, "must be given"
    elif first["type"] == "unknown_field":
        name, code = first["ctx"]["field"], "unknown_field"
        path, value = _join(path, repr(name[:MAX_NAME_CHARS])[1:-1]), value[name]
    elif first["type"] == "unsupported_field":
        code = "unsupported_field"
    return RequestError(path, value, reason, code=code)


def _join(path: str, key: str | int) -> str:
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else key


def _in_our_words(message: str) -> str:
    """What is "Input should be a valid string" there is "must be a string" here."""
    words = re.sub(r"^\w+ should ", "must ", message)
    words = re.sub(r" after validation, not .*| or instance of .*", "", words)
    return words.replace("a valid integer", "an integer").replace("a valid ", "a ")


# From a checked model to what the engine takes.


def _request(form: Form, fields: dict[str, Any], defaults: Mapping[str, Any]) -> RequestLine:
    given = [name for name in ("prompt", "prompt_token_ids", "messages") if name in fields]
    if len(given) != 1:
        reason = "a line has one of prompt, prompt_token_ids and messages"
        raise RequestError("prompt", " and ".join(given) or None, reason)
    prompt = fields.get("prompt", fields.get("prompt_token_ids"))
    model = fields.get("model")
    return RequestLine(
        form=form,
        custom_id=fields.get("custom_id"),
        prompt=tuple(prompt) if isinstance(prompt, list) else prompt,
        messages=_messages(fields["messages"]) if "messages" in fields else None,
        params=_params(fields, defaults, chat=form == "chat"),
        model=model if isinstance(model, str) else None,
    )


def _messages(checked: list[Message]) -> tuple[dict[str, str], ...]:
    """With the parts of a content joined by newlines, as vLLM does for templates that take a text."""
    messages = []
    for message in checked:
        content = message.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        one = {"role": message.role, "content": text}
        messages.append(one if message.name is None else {**one, "name": message.name})
    num_chars = sum(len(message["content"]) for message in messages)
    if num_chars > MAX_PROMPT_CHARS:
        raise RequestError("messages", f"{num_chars} characters", f"must have at most {MAX_PROMPT_CHARS}")
    return tuple(messages)


def _params(fields: dict[str, Any], defaults: Mapping[str, Any], *, chat: bool) -> SamplingParams:
    given = {name: fields[name] for name in SAMPLING_FIELDS if name in fields}
    named = {}  # what an error must call them, where that is not vLLM's name
    if chat:
        named = _chat_names(fields, given)
    if "logit_bias" in given:
        given["logit_bias"] = _by_token_id(given["logit_bias"])
    try:
        return SamplingParams(**{**defaults, **given})
    except RequestError as error:
        raise RequestError(named.get(error.field, error.field), error.value, error.reason) from None


def _chat_names(fields: dict[str, Any], given: dict[str, Any]) -> dict[str, str]:
    """Put chat's own parameters into `given` under vLLM's names; those that were renamed."""
    named = {}
    limit = fields.get("max_completion_tokens")
    if limit is not None:
        if given.get("max_tokens", limit) != limit:
            raise RequestError("max_completion_tokens", limit, f"max_tokens says {given['max_tokens']!r}")
        given["max_tokens"], named["max_tokens"] = limit, "max_completion_tokens"
    top = fields.get("top_logprobs")
    if given.get("logprobs"):
        given["logprobs"], named["logprobs"] = 0 if top is None else top, "top_logprobs"
    elif top is not None and top != 0:
        raise RequestError("top_logprobs", top, "takes logprobs: true")
    elif "logprobs" in given:
        given["logprobs"] = None
    return named


def _by_token_id(bias: Any) -> Any:
    """JSON's keys are texts."""
    if not isinstance(bias, dict):
        return bias  # SamplingParams says what it must be
    for key in bias:
        if not re.fullmatch(r"0|[1-9][0-9]{0,9}", key):
            raise RequestError("logit_bias", key[:MAX_NAME_CHARS], "a key must be a token id")
    return {int(key): value for key, value in bias.items()}
