"""Conversations as the model reads them: its chat template makes a text of the messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jbatch.errors import RequestError
from jbatch.text.messages import Conversation, check_messages
from jbatch.text.special_tokens import load_special_tokens
from jbatch.text.template import RENDER_LIMIT_S, Renderer
from jbatch.text.tokenizer import Tokenizer


class ChatTemplate:
    """A model's own template, rendered as transformers renders it.

    The text of a message is not searched for special tokens: where it holds one ("</s>"), that becomes the
    token, as in transformers and vLLM. Who cannot trust the text removes them first.
    """

    def __init__(self, template: str, special_tokens: dict[str, str], limit_s: float = RENDER_LIMIT_S):
        self._renderer = Renderer(template, special_tokens, limit_s)

    @classmethod
    def load(cls, model_dir: str | Path, special_tokens: Mapping[str, str] | None = None) -> ChatTemplate:
        """Read a model directory's template: chat_template.jinja, else the only one of tokenizer_config.json,
        or the one that is named "default" there.

        Args:
          special_tokens: the texts of bos_token and the like; None: what the directory's files name.

        Raises RequestError where the directory has none.
        """
        path = Path(model_dir)
        template = _find_template(path)
        return cls(template, dict(special_tokens or load_special_tokens(path).texts))

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
        """The prompt of a conversation. Raises what `ChatTemplate.load` and `render` raise."""
        if self._tokenizer is None:
            raise RequestError("messages", messages, "this model has no tokenizer: give prompt_token_ids")
        if self._template is None:
            self._template = ChatTemplate.load(self._model_dir, self._tokenizer.special_tokens)
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


def _find_template(model_dir: Path) -> str:
    try:
        return (model_dir / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    try:
        raw = json.loads((model_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = raw.get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError):
        template = None
    if isinstance(template, list):  # [{"name": ..., "template": ...}, ...]
        named = {
            str(entry["name"]): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and "name" in entry
        }
        template = next(iter(named.values())) if len(named) == 1 else named.get("default")
        if len(named) > 1 and template is None:
            raise RequestError("messages", "...", f"no chat template is named default, of {sorted(named)}")
    if not isinstance(template, str):
        raise RequestError(
            "messages", "...", "this model has no chat template: give prompts", code="no_chat_template"
        )
    return template
