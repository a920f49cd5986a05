"""A model's tokenizer as its users see it: by transformers' names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from jbatch import shown
from jbatch.text.chat import ChatEncoder
from jbatch.text.chat_options import ChatFields, options_of
from jbatch.text.messages import Conversation
from jbatch.text.tokenizer import Tokenizer


class ModelTokenizer:
    """The tokenizer of an LLM, and its chat template: the same token ids that `generate` and `chat` make."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatEncoder):
        self._tokenizer, self._chat = tokenizer, chat

    def __repr__(self) -> str:
        chat = "a chat template" if self._chat.why_no_template() is None else "no chat template"
        ends = f"bos_token_id={self.bos_token_id}, eos_token_id={self.eos_token_id}"
        return f"<ModelTokenizer: {shown.count(self.vocab_size)}, {ends}, {chat}>"

    @property
    def vocab_size(self) -> int:
        """How many ids it may produce, added tokens included; the model may have fewer, or more."""
        return self._tokenizer.vocab_size

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text; None where no file names one."""
        return self._tokenizer.bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, by the tokenizer's files; `generate` ends with those of the model, too."""
        return self._tokenizer.eos_token_id

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text; with special tokens, those of it as a prompt.

        Raises RequestError for invalid Unicode, and where the tokenizer fails.
        """
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids, or of one; ids that the tokenizer does not know give nothing.

        Raises RequestError where the tokenizer's decoder fails.
        """
        ids = [token_ids] if isinstance(token_ids, int) else [int(token_id) for token_id in token_ids]
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        conversation: Conversation,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **options: Any,
    ) -> list[int] | str:
        """The prompt of a conversation: its token ids, or without `tokenize` its text.

        Args:
          add_generation_prompt: end with the beginning of an answer, as `LLM.chat` does by default.
          options: the other fields of ChatOptions, by name; any other name goes to the template, as in
            transformers: enable_thinking=False.

        Raises:
          RequestError: for messages and options that are refused, and for a model without chat template.
          ConfigError: where transformers or jinja2 is not installed.
        """
        fields = {name: options.pop(name) for name in ChatFields.__annotations__ if name in options}
        fields["add_generation_prompt"] = add_generation_prompt
        fields["chat_template_kwargs"] = {**(fields.get("chat_template_kwargs") or {}), **options}
        prompt = self._chat.encode(conversation, options_of(cast(ChatFields, fields)))
        return list(prompt.token_ids) if tokenize else prompt.text
