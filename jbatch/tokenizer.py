"""Text to token ids and back: a model directory's tokenizer.json, streamed decoding, stop strings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers.decoders import DecodeStream

from jbatch.errors import ConfigError, RequestError

FILE_NAME = "tokenizer.json"


class Tokenizer:
    """A fast tokenizer. Encoding adds what its post-processor adds, which is at most one BOS."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
    ):
        self._tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id = bos_token_id, eos_token_id

    @property
    def vocab_size(self) -> int:
        """Ids that it may produce, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Raises RequestError for text that is no valid Unicode."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:  # a lone surrogate
            raise RequestError("prompt", text, "must be text without lone surrogates") from error
        if len(ids) > 1 and ids[0] == ids[1] == self.bos_token_id:
            return ids[1:]  # the prompt named it, and the post-processor added it
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of all tokens at once; ids that the tokenizer does not know give nothing.

        Raises RequestError where the tokenizer's decoder fails.
        """
        try:
            return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except Exception as error:  # the library raises nothing narrower
            raise RequestError("token_ids", list(token_ids), f"cannot be decoded: {error}") from error

    def stop_finder(self, stop: Sequence[str], *, skip_special_tokens: bool = True) -> StopFinder:
        """Watches one sequence's text for stop strings."""
        return StopFinder(self._tokenizer, stop, skip_special_tokens)


class StopFinder:
    """Decodes a sequence token by token, and finds the first stop string to be completed."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, stop: Sequence[str], skip_special_tokens: bool):
        self._tokenizer, self._stop = tokenizer, stop
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._text = ""
        self.found: str | None = None

    def push(self, token_id: int, *, search: bool = True) -> bool:
        """Take in a token; whether it completes a stop string. Without `search` it may not.

        Raises RequestError where the tokenizer cannot decode the sequence.
        """
        try:
            new = self._stream.step(self._tokenizer, token_id)  # None inside a character
        except Exception as error:  # the library raises nothing narrower
            raise RequestError("stop", list(self._stop), f"the output cannot be decoded: {error}") from error
        if not new:
            return False
        before, self._text = len(self._text), self._text + new
        found = [(self._text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self._stop]
        hits = [(at, stop) for at, stop in found if at >= 0 and search]
        if hits:
            self._at, self.found = min(hits)
        return bool(hits)

    def text(self, *, include_stop: bool) -> str:
        """The text up to the stop string that was found, or through it."""
        assert self.found is not None, "no stop string was found"
        return self._text[: self._at + len(self.found) * include_stop]


def load_tokenizer(model_dir: str | Path, bos_token_id: int | None = None) -> Tokenizer | None:
    """The tokenizer of a model directory, or None where it has none (token-id prompts still work).

    Args:
      bos_token_id: where tokenizer_config.json names none.

    Raises:
      ConfigError: for a tokenizer.json that cannot be read.
    """
    path = Path(model_dir) / FILE_NAME
    if not path.exists():
        return None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(FILE_NAME, str(path), f"cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = _special_tokens(Path(model_dir) / "tokenizer_config.json")
    bos, eos = (tokenizer.token_to_id(special[name] or "") for name in _SPECIAL)
    return Tokenizer(tokenizer, bos_token_id if bos is None else bos, eos)


_SPECIAL = ("bos_token", "eos_token")


def _special_tokens(path: Path) -> dict[str, str | None]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: raw.get(name) for name in _SPECIAL}
    except (OSError, ValueError, AttributeError, RecursionError):
        return dict.fromkeys(_SPECIAL)  # optional: config.json and generation_config.json name the ids too
    for name, text in texts.items():
        if isinstance(text, dict):  # an AddedToken, written out
            texts[name] = text.get("content")
    return {name: text if isinstance(text, str) else None for name, text in texts.items()}
