"""The messages of a conversation, checked: those that come from Python and those of a JSONL line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jbatch.errors import RequestError, unknown_field

ROLES = ("system", "user", "assistant")
Message = dict[str, Any]  # {"role": ..., "content": ...}
Conversation = Sequence[Message]


def check_messages(messages: Any) -> list[dict[str, str]]:
    """The messages with their text parts joined by line breaks, as vLLM joins them for templates that take a
    text. A name that is None is left out.

    Raises RequestError naming the message and the field.
    """
    if not isinstance(messages, (list, tuple)):
        raise RequestError("messages", messages, "must be a list")
    if not messages:
        raise RequestError("messages", messages, "must have at least 1 item")
    return [_check_message(f"messages[{idx}]", message) for idx, message in enumerate(messages)]


def list_conversations(messages: Any) -> list[Conversation]:
    """A list of conversations, also of a single one."""
    if isinstance(messages, (list, tuple)) and messages and not isinstance(messages[0], (list, tuple)):
        return [messages]
    return list(messages)


def _check_message(path: str, message: Any) -> dict[str, str]:
    _check_fields(path, message, ("role", "content", "name"), "a message")
    role = _given(path, message, "role")
    if role not in ROLES:
        raise RequestError(f"{path}.role", role, "must be 'system', 'user' or 'assistant'")
    checked = {"role": role, "content": _check_content(f"{path}.content", _given(path, message, "content"))}
    if message.get("name") is not None:
        checked["name"] = _check_text(f"{path}.name", message["name"])
    return checked


def _check_content(path: str, content: Any) -> str:
    """The text of a content, whose parts are joined."""
    if not isinstance(content, (list, tuple)):
        return _check_text(path, content)
    return "\n".join(_check_part(f"{path}[{idx}]", part) for idx, part in enumerate(content))


def _check_part(path: str, part: Any) -> str:
    _check_fields(path, part, ("type", "text"), "a part of a content")
    if (kind := _given(path, part, "type")) != "text":
        raise RequestError(f"{path}.type", kind, "must be 'text'")
    return _check_text(f"{path}.text", _given(path, part, "text"))


def _check_fields(path: str, value: Any, known: Sequence[str], what: str) -> None:
    if not isinstance(value, dict):
        raise RequestError(path, value, "must be a dictionary")
    for name in value:
        if name not in known:
            raise unknown_field(path, name, value[name], known, what)


def _given(path: str, value: Mapping[str, Any], name: str) -> Any:
    if name not in value:
        raise RequestError(f"{path}.{name}", None, "must be given")
    return value[name]


def _check_text(path: str, text: Any) -> str:
    if not isinstance(text, str):
        raise RequestError(path, text, "must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(path, text, "must be text without lone surrogates") from error
    return text
