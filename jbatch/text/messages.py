"""The messages of a conversation, checked: those that come from Python and those of a JSONL line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jbatch.errors import RequestError, unknown_field

ROLES = ("system", "developer", "user", "assistant", "tool")
FIELDS = ("role", "content", "name")  # of every message
OWN_FIELDS = {"assistant": ("tool_calls", "reasoning_content", "reasoning"), "tool": ("tool_call_id",)}
TEXT_FIELDS = ("name", "reasoning_content", "reasoning", "tool_call_id")
IGNORED = ("annotations",)  # where an answer got its facts from: no template shows it
UNSUPPORTED = ("refusal", "audio", "function_call")  # what OpenAI's own answers may hold
KNOWN = {role: (*FIELDS, *OWN_FIELDS.get(role, ())) for role in ROLES}
PART_TYPES = ("text", "refusal")  # of a content; each has its text in a field of its name
Message = dict[str, Any]  # {"role": ..., "content": ...}
Conversation = Sequence[Message]


def check_messages(messages: Any) -> list[Message]:
    """The messages as chat templates read them: text parts of a content joined by line breaks (as vLLM joins
    them), the arguments of tool calls as dictionaries, and without fields that are None or empty lists.

    Raises RequestError naming the message and the field.
    """
    if not isinstance(messages, (list, tuple)):
        raise RequestError("messages", messages, "must be a list")
    if not messages:
        raise RequestError("messages", messages, "must have at least 1 item")
    return [_check_message(f"messages[{idx}]", message) for idx, message in enumerate(messages)]


def list_conversations(messages: Any) -> list[Conversation]:
    """A list of conversations, also of a single one. What is no list is one that will be refused.

    Raises TypeError for a text.
    """
    if isinstance(messages, str):
        form = "a text is no conversation: give [{'role': 'user', 'content': ...}], or call generate"
        raise TypeError(f"messages={messages[:80]!r}: {form}")
    if not isinstance(messages, (list, tuple)):
        return [messages]
    return [messages] if messages and not isinstance(messages[0], (list, tuple)) else list(messages)


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Descriptions of functions, as chat templates read them: OpenAI's, without fields that are None.

    Raises RequestError naming the tool and the field.
    """
    if not isinstance(tools, (list, tuple)):
        raise RequestError("tools", tools, "must be a list")
    return [_check_tool(f"tools[{idx}]", tool) for idx, tool in enumerate(tools)]


def _check_message(path: str, message: Any) -> Message:
    given = given_fields(path, message)
    role = _required(path, given, "role")
    if role not in ROLES:
        raise RequestError(f"{path}.role", role, f"must be one of {', '.join(map(repr, ROLES))}")
    known, checked = KNOWN[role], {"role": role, "content": ""}
    for name, value in given.items():
        if name not in known:
            _check_stranger(path, name, value, known)
        elif name == "content":
            checked[name] = value if is_plain(value) else _check_content(f"{path}.content", value)
        elif name in TEXT_FIELDS:
            checked[name] = _check_text(f"{path}.{name}", value)
        elif name == "tool_calls" and value != []:
            checked[name] = _check_tool_calls(f"{path}.{name}", value)
    if "content" not in given and not any(name in checked for name in OWN_FIELDS["assistant"]):
        raise RequestError(f"{path}.content", None, "must be given")
    return checked


def _check_stranger(path: str, name: str, value: Any, known: Sequence[str]) -> None:
    """Raise RequestError for a field that messages of this role do not have, unless it says nothing."""
    if name in IGNORED or (name == "tool_calls" and value == []):
        return
    if name in UNSUPPORTED:
        reason = "is not supported: leave it out"
        raise RequestError(f"{path}.{name}", value, reason, code="unsupported_field")
    raise unknown_field(path, name, value, known, "a message")


def _check_content(path: str, content: Any) -> str:
    """The text of a content, whose parts are joined."""
    if not isinstance(content, (list, tuple)):
        return _check_text(path, content)
    return "\n".join(_check_part(f"{path}[{idx}]", part) for idx, part in enumerate(content))


def _check_part(path: str, part: Any) -> str:
    given = given_fields(path, part)
    kind = _required(path, given, "type")
    if kind not in PART_TYPES:
        raise RequestError(f"{path}.type", kind, "must be 'text' or 'refusal'")
    check_fields(path, given, ("type", kind), "a part of a content")
    return _check_text(f"{path}.{kind}", _required(path, given, kind))


def _check_tool_calls(path: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, (list, tuple)):
        raise RequestError(path, calls, "must be a list")
    return [_check_tool_call(f"{path}[{idx}]", call) for idx, call in enumerate(calls)]


def _check_tool_call(path: str, call: Any) -> dict[str, Any]:
    """A call with its arguments as a dictionary: templates write them as JSON again."""
    given = given_fields(path, call)
    check_fields(path, given, ("id", "type", "function"), "a tool call")
    _check_type(path, given)
    within = f"{path}.function"
    function = given_fields(within, _required(path, given, "function"))
    check_fields(within, function, ("name", "arguments"), "a call of a function")
    name = _check_text(f"{within}.name", _required(within, function, "name"))
    arguments = _check_arguments(f"{within}.arguments", function.get("arguments", "{}"))
    checked = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": _check_text(f"{path}.id", given["id"]), **checked} if "id" in given else checked


def _check_arguments(path: str, arguments: Any) -> dict[str, Any]:
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise RequestError(path, arguments, "must be a JSON object")
    return value


def _check_tool(path: str, tool: Any) -> dict[str, Any]:
    given = given_fields(path, tool)
    _check_type(path, given)
    function = given_fields(f"{path}.function", _required(path, given, "function"))
    _check_text(f"{path}.function.name", _required(f"{path}.function", function, "name"))
    return {**given, "function": function}


def _check_type(path: str, given: Mapping[str, Any]) -> None:
    if (kind := given.get("type", "function")) != "function":
        raise RequestError(f"{path}.type", kind, "must be 'function'")


def given_fields(path: str, value: Any) -> dict[str, Any]:
    """The fields that are there and not None. Raises RequestError for what is no dictionary."""
    if not isinstance(value, dict):
        raise RequestError(path, value, "must be a dictionary")
    return {name: field for name, field in value.items() if field is not None}


def check_fields(path: str, given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Raise RequestError for the first field that is not known."""
    for name in given:
        if name not in known:
            raise unknown_field(path, name, given[name], known, what)


def _required(path: str, given: Mapping[str, Any], name: str) -> Any:
    if name not in given:
        raise RequestError(f"{path}.{name}", None, "must be given")
    return given[name]


def is_plain(value: Any) -> bool:
    """Whether it is a text that needs no further look: most are."""
    return isinstance(value, str) and value.isascii()


def _check_text(path: str, text: Any) -> str:
    if not isinstance(text, str):
        raise RequestError(path, text, "must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(path, text, "must be text without lone surrogates") from error
    return text
