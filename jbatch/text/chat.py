"""Conversations as the model reads them: its chat template makes a text of the messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jbatch.errors import RequestError
from jbatch.text.chat_options import ChatOptions, read_chat_template
from jbatch.text.messages import Conversation, Message, check_messages
from jbatch.text.special_tokens import load_special_tokens
from jbatch.text.template import RENDER_LIMIT_S, Renderer
from jbatch.text.tokenizer import Tokenizer

DEFAULT = ChatOptions()


class ChatTemplate:
    """A model's own template, rendered as transformers renders it.

    The text of a message is not searched for special tokens: where it holds one ("</s>"), that becomes the
    token, as in transformers and vLLM. Who cannot trust the text removes them first.

    Args:
      template: a Jinja template; an error: why there is none.
      special_tokens: bos_token and the like, which templates name.
      limit_s: seconds that one conversation may take.
    """

    def __init__(
        self, template: str | RequestError, special_tokens: dict[str, str], limit_s: float = RENDER_LIMIT_S
    ):
        self._template = template
        self._renderer = Renderer(special_tokens, limit_s)

    @classmethod
    def load(
        cls,
        model_dir: str | Path,
        template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> ChatTemplate:
        """Read a model directory's template: chat_template.jinja, else the only one of tokenizer_config.json,
        or the one that is named "default" there. Where the directory has none, `render` says so.

        Args:
          template: instead of the directory's.
          special_tokens: the texts of bos_token and the like; None: what the directory's files name.
        """
        path = Path(model_dir)
        texts = special_tokens or load_special_tokens(path).texts
        return cls(_find_template(path) if template is None else template, dict(texts))

    def render(self, messages: Conversation, options: ChatOptions = DEFAULT) -> str:
        """The text to continue: all messages, and the beginning of the assistant's answer, or as the options
        say.

        Raises:
          RequestError: for messages that are none, for a model without a template, and where the template
            raises or takes too long.
          ConfigError: where transformers or jinja2 is not installed.
        """
        template = self._template if options.chat_template is None else options.chat_template
        if isinstance(template, RequestError):
            raise template
        checked = _with_known_roles(check_messages(messages), template)
        if options.continue_final_message and not checked[-1]["content"]:
            reason = "the last message has no content to continue"
            raise RequestError("continue_final_message", True, reason)
        return self._renderer.render(template, checked, options)

    def close(self) -> None:
        """End the process that renders."""
        self._renderer.close()


class ChatPrompt(NamedTuple):
    """A conversation as the model reads it."""

    text: str
    token_ids: tuple[int, ...]


class ChatEncoder:
    """Makes prompts of conversations with the template and the tokenizer of one directory.

    Args:
      chat_template: instead of the directory's: its text, or the path of its file.

    Raises:
      ConfigError: for a template that cannot be read.
    """

    def __init__(self, model_dir: Path, tokenizer: Tokenizer | None, chat_template: str | Path | None = None):
        self._model_dir, self._tokenizer = model_dir, tokenizer
        self._given = None if chat_template is None else read_chat_template(chat_template)
        self._template: ChatTemplate | None = None  # read when it is first needed

    def encode(self, messages: Conversation, options: ChatOptions = DEFAULT) -> ChatPrompt:
        """The prompt of a conversation. Raises what `ChatTemplate.render` raises."""
        if self._tokenizer is None:
            raise RequestError("messages", messages, "this model has no tokenizer: give prompt_token_ids")
        if self._template is None:
            named = self._tokenizer.special_tokens
            self._template = ChatTemplate.load(self._model_dir, self._given, named)
        text = self._template.render(messages, options)
        return ChatPrompt(text, tuple(self._tokenizer.encode(text, add_special_tokens=False)))

    def why_no_template(self) -> str | None:
        """Why there is no template to render with, said of the model; None where there is one."""
        if self._given is not None:
            return None
        template, why_not = _read_template(self._model_dir)
        return why_not if template is None else None

    def encode_or_error(
        self, messages: Conversation, options: ChatOptions = DEFAULT
    ) -> ChatPrompt | RequestError:
        """The prompt, or why there is none."""
        try:
            return self.encode(messages, options)
        except RequestError as error:
            return error

    def close(self) -> None:
        """End the process that renders."""
        if self._template is not None:
            self._template.close()


def _with_known_roles(messages: list[Message], template: str) -> list[Message]:
    """Developers' messages as the system's, where a template does not know that role: it would refuse them,
    or leave them out without a word."""
    if "developer" in template:
        return messages
    return [
        {**message, "role": "system"} if message["role"] == "developer" else message for message in messages
    ]


def _find_template(model_dir: Path) -> str | RequestError:
    """A directory's template, or the error of messages for which there is none."""
    template, why_not = _read_template(model_dir)
    if template is not None:
        return template
    reason = f"this model {why_not}: give prompts, or a chat_template"
    return RequestError("messages", "...", reason, code="no_chat_template")


def _read_template(model_dir: Path) -> tuple[str | None, str]:
    """A directory's template, or None and why there is none."""
    try:
        return (model_dir / "chat_template.jinja").read_text(encoding="utf-8"), ""
    except (OSError, UnicodeDecodeError):
        pass
    try:
        raw = json.loads((model_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = raw.get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError):
        template = None
    why_not = "has no chat template"
    if isinstance(template, list):  # [{"name": ..., "template": ...}, ...]
        named = {
            str(entry["name"]): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and "name" in entry
        }
        template = next(iter(named.values())) if len(named) == 1 else named.get("default")
        if len(named) > 1 and template is None:
            why_not = f"has no chat template that is named default, of {sorted(named)}"
    return (template if isinstance(template, str) else None), why_not
