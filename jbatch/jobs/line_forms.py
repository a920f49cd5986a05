"""The forms of a JSONL line: which fields each has, and what may be in them.

Sampling parameters may be anything here: SamplingParams checks their types and bounds. Messages are checked
by the function that checks those of LLM.chat. No other module of a job needs pydantic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from jbatch.engine.wishes import MAX_DEADLINE_S, WISHES
from jbatch.errors import JBatchError, RequestError, unknown_field
from jbatch.host.request import MAX_LIMIT_MS, MAX_SALT_CHARS
from jbatch.names_elsewhere import instead_of
from jbatch.sampling_params import MAX_ID, SamplingParams
from jbatch.text.chat_options import ChatOptions
from jbatch.text.messages import Message, check_messages

try:
    from pydantic import (
        AfterValidator,
        BaseModel,
        ConfigDict,
        Discriminator,
        Field,
        PlainValidator,
        Tag,
        ValidationError,
        create_model,
        model_validator,
    )
    from pydantic_core import from_json
except ImportError as error:  # the engine does without it, and so may a GPU machine
    raise JBatchError(f"JSONL jobs need pydantic ({error}): pip install pydantic") from error

MAX_CUSTOM_ID_CHARS = 512
MAX_PROMPT_CHARS = 2**20  # of all messages together, too; a tokenizer takes seconds for that
MAX_PROMPT_TOKENS = 2**20
MAX_MESSAGES = 2048  # and parts of a content
MAX_PROMPTS = 2048  # of one line

SAMPLING_FIELDS = tuple(SamplingParams.__dataclass_fields__)
CHAT_FIELDS = tuple(ChatOptions.__dataclass_fields__)  # which ChatOptions checks
OWN_FIELDS = ("prompt", "messages", "echo", "cache_salt", *WISHES)
IGNORED = ("model", "metadata", "service_tier", "store", "safety_identifier", "prompt_cache_key")
REFUSED: dict[str, tuple[Any, ...]] = {  # unless null or one of these values, which ask for nothing
    "stream": (False,),
    "functions": ([],),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "parallel_tool_calls": (False, True),
    "best_of": (1,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    **dict.fromkeys(("stream_options", "structured_outputs", "audio", "prediction", "reasoning_effort"), ()),
    "web_search_options": (),
}


def load_json(raw: bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for lone surrogates, for nesting of more than 200 and
    for integers of more than 4300 digits."""
    return from_json(raw, allow_inf_nan=False)


def check_form(form: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are there and not null. Raises RequestError for the first that is wrong."""
    given = {name: value for name, value in data.items() if value is not None}
    try:
        checked = form.model_validate(given)
    except ValidationError as error:
        raise _request_error(given, error.errors(include_url=False)[0]) from None
    return {name: getattr(checked, name) for name in checked.model_fields_set}


# What may be in a field. A RequestError that is raised here is the line's own.


class _Strict(BaseModel):
    """A form without conversions. It refuses an unknown field, with the name that may have been meant."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    called: ClassVar[str]  # in errors
    elsewhere: ClassVar[frozenset[str]] = frozenset()  # fields that belong in its body

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: dict[str, Any]) -> dict[str, Any]:
        for name in data:
            if name in cls.elsewhere:
                raise RequestError(name, data[name], "belongs in body", code="unknown_field")
            if name not in cls.model_fields:
                known = [field for field in cls.model_fields if field not in (*REFUSED, *IGNORED)]
                raise unknown_field("", name, data[name], known, cls.called)
        return data


def _kind(value: Any) -> str:
    return "ids" if isinstance(value, list) else "text"


def _kind_of_prompts(value: Any) -> str:
    """A list of integers is one prompt, as in OpenAI's API."""
    return "list" if isinstance(value, list) and value and isinstance(value[0], (str, list)) else _kind(value)


def _messages(value: Any) -> tuple[Message, ...]:
    """Messages as LLM.chat takes them, within the bounds of a line."""
    messages = check_messages(value)
    _check_length("messages", value)
    for idx, message in enumerate(value):
        if isinstance(content := message.get("content"), list):
            _check_length(f"messages[{idx}].content", content)
    num_chars = sum(len(message["content"]) for message in messages)
    if num_chars > MAX_PROMPT_CHARS:
        raise RequestError("messages", f"{num_chars} characters", f"must have at most {MAX_PROMPT_CHARS}")
    return tuple(messages)


def _check_length(path: str, items: Sequence[Any]) -> None:
    if len(items) > MAX_MESSAGES:
        raise RequestError(path, items, f"must have at most {MAX_MESSAGES} items")


def _nothing_but(field: str, values: tuple[Any, ...]) -> Any:
    """The type of a field that may only be said not to be wanted."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(allowed) and value == allowed for allowed in values):
            reason = instead_of(field) or "is not supported: leave it out"
            raise RequestError(field, value, reason, code="unsupported_field")
        return value

    return Annotated[Any, AfterValidator(check)]


CustomId = Annotated[str, Field(min_length=1, max_length=MAX_CUSTOM_ID_CHARS)]
Salt = Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)]
Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_ID)]],
    Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_TOKENS),
]
TextOrTokenIds = Annotated[
    Annotated[Text, Tag("text")] | Annotated[TokenIds, Tag("ids")], Discriminator(_kind)
]
Prompts = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[TextOrTokenIds], Tag("list"), Field(fail_fast=True, max_length=MAX_PROMPTS)],
    Discriminator(_kind_of_prompts),
]
Messages = Annotated[Any, PlainValidator(_messages)]


class Envelope(_Strict):
    """An OpenAI batch line."""

    called = "a batch line"
    elsewhere = frozenset((*SAMPLING_FIELDS, *CHAT_FIELDS, *IGNORED, *REFUSED, *OWN_FIELDS))
    custom_id: CustomId
    method: Literal["POST"]
    url: Literal["/v1/completions", "/v1/chat/completions", "/completions", "/chat/completions"]
    body: dict[str, Any]


def _form(called: str, without: tuple[str, ...] = (), **own: Any) -> Any:
    """A form of sampling parameters, of what is ignored or refused, and of fields of its own."""
    shared = dict.fromkeys(SAMPLING_FIELDS + IGNORED, Any)
    shared |= {field: _nothing_but(field, values) for field, values in REFUSED.items()}
    fields: dict[str, Any] = {
        field: (kind, None) for field, kind in shared.items() if field not in (*without, *own)
    }
    form = create_model("Fields", __base__=_Strict, **fields, **own)
    form.called = called
    return form


_SALT: Any = (Salt, None)
_LIMIT: Any = (Annotated[float, Field(ge=0, le=MAX_LIMIT_MS)], None)
_WISHES: dict[str, Any] = {
    "priority": (Annotated[int, Field(ge=-(2**31), le=MAX_ID)], None),
    "deadline": (Annotated[float, Field(ge=0, le=MAX_DEADLINE_S)], None),
    "predicted_len": (Annotated[int, Field(ge=0, le=MAX_ID)], None),
    "user": (Any, None),  # OpenAI's; what is no text is nobody
    "ttft_ms": _LIMIT,
    "tpot_ms": _LIMIT,
    "e2el_ms": _LIMIT,
}
_CHAT_FIELDS: dict[str, Any] = dict.fromkeys(CHAT_FIELDS, (Any, None))
_NO_ECHO = (_nothing_but("echo", (False,)), None)
Bare = _form(
    "a line",
    custom_id=(CustomId, None),
    prompt=(Text, None),
    prompt_token_ids=(TokenIds, None),
    messages=(Messages, None),
    cache_salt=_SALT,
    **_WISHES,
    echo=_NO_ECHO,
    **_CHAT_FIELDS,
)
Completions = _form(
    "a completions body",
    ("detokenize",),
    prompt=(Prompts, ...),
    cache_salt=_SALT,
    **_WISHES,
    echo=(bool, None),
    tools=(_nothing_but("tools", ([],)), None),
)
Chat = _form(
    "a chat body",
    ("detokenize",),
    messages=(Messages, ...),
    logprobs=(bool, None),
    top_logprobs=(Any, None),
    max_completion_tokens=(Any, None),
    cache_salt=_SALT,
    **_WISHES,
    echo=_NO_ECHO,
    **_CHAT_FIELDS,
)


# pydantic's errors in our words.


def _request_error(data: Any, first: Any) -> RequestError:
    """pydantic's first error, with the path of its field and the value there."""
    own = first.get("ctx", {}).get("error")
    if isinstance(own, RequestError):
        return own
    path, value = "", data
    for key in first["loc"]:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):  # a name of pydantic's own: the tag of a union
            continue
        path = _join(path, key)
    if first["type"] == "missing":
        return RequestError(_join(path, first["loc"][-1]), None, "must be given")
    return RequestError(path, value, _in_our_words(first["msg"]))


def _join(path: str, key: str | int) -> str:
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else key


def _in_our_words(message: str) -> str:
    """A message of pydantic's: "Input should be a valid string" is "must be a string" here."""
    words = re.sub(r"^\w+ should ", "must ", message)
    words = re.sub(r" after validation, not .*| or instance of .*", "", words)
    return words.replace("a valid integer", "an integer").replace("a valid ", "a ")
