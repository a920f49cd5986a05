"""Conversations: checked messages, and the model's chat template that makes them a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.errors import RequestError
from jbatch.text.template import RENDER_LIMIT_S, Renderer
from jbatch.text.tokenizer import Tokenizer, load_special_tokens

ROLES = ("system", "user", "assistant")
FIELDS = ("role", "content", "name")
Message = dict[str, Any]  # {"role": ..., "content": ...}
Conversation = Sequence[Message]


class ChatTemplate:
    """A model's own template, rendered as transformers renders it.

    The text of a message is not searched for special tokens: where it holds one ("</s>"), that becomes the
    token, as in transformers and vLLM. Who cannot trust the text removes them first.
    """

    def __init__(self, template: str, special_tokens: dict[str, str], limit_s: float = RENDER_LIMIT_S):
        self._renderer = Renderer(template, special_tokens, limit_s)

    @classmethod
    def load(cls, model_dir: str | Path) -> ChatTemplate:
        """Of chat_template.jinja, else of tokenizer_config.json: its only one, or the one named "default".

        Raises RequestError where the directory has none.
        """
        path = Path(model_dir)
        return cls(_find_template(path), load_special_tokens(path))

    def render(self, messages: Conversation) -> str:
        """The text to continue: all messages, and the beginning of the assistant's answer.

        Raises:
          RequestError: for messages that are none, and where the template raises or takes too long.
          ConfigError: where transformers or jinja2 is not installed.
        """
        return self._renderer.render(check_messages(messages))

    def close(self) -> None:
        """End the process that renders."""
        self._renderer.close()


class ChatPrompt(NamedTuple):
    """A conversation as the model reads it."""

    text: str
    token_ids: tuple[int, ...]


class ChatEncoder:
    """Makes prompts of conversations with the template and the tokenizer of one directory."""

    def __init__(self, model_dir: Path, tokenizer: Tokenizer | None):
        self._model_dir, self._tokenizer = model_dir, tokenizer
        self._template: ChatTemplate | None = None  # read when it is first needed

    def encode(self, messages: Conversation) -> ChatPrompt:
        """Raises what `ChatTemplate.load` and `render` raise."""
        if self._tokenizer is None:
            raise RequestError("messages", messages, "this model has no tokenizer: give prompt_token_ids")
        if self._template is None:
            self._template = ChatTemplate.load(self._model_dir)
        text = self._template.render(messages)
        return ChatPrompt(text, tuple(self._tokenizer.encode(text, add_special_tokens=False)))

    def encode_or_error(self, messages: Conversation) -> ChatPrompt | RequestError:
        """The prompt, or why there is none."""
        try:
            return self.encode(messages)
        except RequestError as error:
            return error

    def close(self) -> None:
        """End the process that renders."""
        if self._template is not None:
            self._template.close()


def check_messages(messages: Any) -> list[dict[str, str]]:
    """The messages with their text parts joined by line breaks, as vLLM joins them.

    Raises RequestError naming the message and the field.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RequestError("messages", messages, "must be a list of at least one message")
    return [_check_message(f"messages[{idx}]", message) for idx, message in enumerate(messages)]


def list_conversations(messages: Any) -> list[Conversation]:
    """A list of conversations, also of a single one."""
    if isinstance(messages, (list, tuple)) and messages and not isinstance(messages[0], (list, tuple)):
        return [messages]
    return list(messages)


def _check_message(name: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise RequestError(name, message, "must be a dictionary with role and content")
    for field in message:
        if field not in FIELDS:
            raise RequestError(
                f"{name}.{field}", message[field], f"is not supported: only {', '.join(FIELDS)}"
            )
    if message.get("role") not in ROLES:
        raise RequestError(f"{name}.role", message.get("role"), f"must be one of {', '.join(ROLES)}")
    checked = {"role": message["role"], "content": _check_content(f"{name}.content", message.get("content"))}
    if "name" in message:
        checked["name"] = _check_text(f"{name}.name", message["name"])
    return checked


def _check_content(name: str, content: Any) -> str:
    if not isinstance(content, (list, tuple)):
        return _check_text(name, content)
    texts = []
    for idx, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or set(part) != {"type", "text"}:
            raise RequestError(f"{name}[{idx}]", part, 'must be a text part, {"type": "text", "text": ...}')
        texts.append(_check_text(f"{name}[{idx}].text", part["text"]))
    return "\n".join(texts)


def _check_text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise RequestError(name, text, "must be text, or a list of text parts")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(name, text, "must be text without lone surrogates") from error
    return text


def _find_template(model_dir: Path) -> str:
    try:
        return (model_dir / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    try:
        raw = json.loads((model_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        found = raw.get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError):
        found = None
    if isinstance(found, list):  # [{"name": ..., "template": ...}, ...]
        named = {
            str(one["name"]): one.get("template") for one in found if isinstance(one, dict) and "name" in one
        }
        found = next(iter(named.values())) if len(named) == 1 else named.get("default")
        if len(named) > 1 and found is None:
            raise RequestError("messages", "...", f"no chat template is named default, of {sorted(named)}")
    if not isinstance(found, str):
        raise RequestError(
            "messages", "...", "this model has no chat template: give prompts", code="no_chat_template"
        )
    return found
