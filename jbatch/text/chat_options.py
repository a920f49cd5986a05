"""What may be asked of a chat template besides the messages, checked: ChatOptions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

from jbatch.errors import ConfigError, RequestError, check_option_names
from jbatch.text.messages import check_tools

MAX_TEMPLATE_CHARS = 2**20
RESERVED = (  # names that a template's own arguments cannot have
    *("messages", "conversations", "tools", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "return_assistant_tokens_mask"),
)


class ChatFields(TypedDict, total=False):
    """The fields of ChatOptions, by name. A template may also be a file's path (see `read_chat_template`)."""

    chat_template: Any
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    tools: list[dict[str, Any]] | None
    chat_template_kwargs: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """How a conversation becomes a prompt. Names and meanings are vLLM's; None is as good as missing.

    Raises:
      RequestError: naming the field, its value and what it may be.
      TypeError: for an unknown option, suggesting the closest known one.
    """

    chat_template: str | None = None  # a Jinja template, instead of the model's
    add_generation_prompt: bool | None = None  # end with the beginning of an answer; None: unless continued
    continue_final_message: bool | None = None  # leave the last message open: the model goes on with it
    tools: list[dict[str, Any]] | None = None  # OpenAI's descriptions of functions, for the template to show
    chat_template_kwargs: dict[str, Any] | None = None  # more for the template: {"enable_thinking": False}

    def __new__(cls, *args: Any, **options: Any) -> ChatOptions:
        check_option_names(options, cls.__dataclass_fields__, "a chat")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("add_generation_prompt", "continue_final_message"):
            if not isinstance(value := getattr(self, name), bool | None):
                raise RequestError(name, value, "must be true or false")
        if self.add_generation_prompt and self.continue_final_message:
            reason = "a message that is continued has no beginning of an answer after it"
            raise RequestError("continue_final_message", True, f"not with add_generation_prompt: {reason}")
        if self.chat_template is not None:
            _check_template(self.chat_template)
        if self.tools is not None:
            object.__setattr__(self, "tools", check_tools(self.tools) or None)
        if self.chat_template_kwargs is not None:
            object.__setattr__(self, "chat_template_kwargs", _check_kwargs(self.chat_template_kwargs) or None)

    @property
    def begins_answer(self) -> bool:
        """Whether the text ends with the beginning of an answer."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt


def _check_template(template: Any) -> None:
    if not isinstance(template, str) or not 0 < len(template) <= MAX_TEMPLATE_CHARS:
        reason = f"must be a string of 1 to {MAX_TEMPLATE_CHARS} characters"
        raise RequestError("chat_template", template, reason)


def _check_kwargs(kwargs: Any) -> dict[str, Any]:
    """Those that are not None."""
    if not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in kwargs):
        raise RequestError("chat_template_kwargs", kwargs, "must map names to values")
    for name in kwargs:
        if name in RESERVED:
            raise RequestError(f"chat_template_kwargs.{name}", kwargs[name], "is a field of its own, or none")
    return {name: value for name, value in kwargs.items() if value is not None}


def read_chat_template(template: str | Path) -> str:
    """A template that is given as text, or by the path of its file: a text without braces and line breaks is
    a path, as in vLLM.

    Raises ConfigError for a file that cannot be read.
    """
    if isinstance(template, str) and any(char in template for char in "{}\n"):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ConfigError("chat_template", str(template), reason) from None


def options_of(fields: ChatFields) -> ChatOptions:
    """Checked, with the text of a template that is given by its path. Raises what `ChatOptions` and
    `read_chat_template` raise."""
    named: dict[str, Any] = dict(fields)
    if isinstance(template := named.get("chat_template"), str | Path):
        named["chat_template"] = read_chat_template(template)
    return ChatOptions(**named)
