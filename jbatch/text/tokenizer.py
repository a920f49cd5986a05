"""Text to token ids and back: a model directory's tokenizer.json, streamed decoding, stop strings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from jbatch.errors import ConfigError, RequestError
from jbatch.text.tokenizer_probe import load, refusal

FILE_NAME = "tokenizer.json"
MAX_FILE_BYTES = 2**28
MAX_CONFIG_BYTES = 2**24  # of tokenizer_config.json
REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character, or not yet
MAX_PENDING = 32  # tokens without the end of a character: then they are no text. A character has at most 4


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
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def vocab_size(self) -> int:
        """How many ids it may produce, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text. Raises RequestError for invalid Unicode, and where the tokenizer fails."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:  # a lone surrogate
            raise RequestError("prompt", text, "must be text without lone surrogates") from error
        except BaseException as error:
            raise _as_request_error(error, "prompt", text, "cannot be encoded") from error
        if len(ids) > 1 and ids[0] == ids[1] == self.bos_token_id:
            return ids[1:]  # the prompt named it, and the post-processor added it
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of all tokens; ids that the tokenizer does not know give nothing.

        Raises RequestError where the tokenizer's decoder fails.
        """
        text = self.decode_once(token_ids, skip_special_tokens=skip_special_tokens)
        if REPLACEMENT not in text:
            return text
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        for token_id in token_ids:  # where bytes are no text, it depends on when they are shown
            detokenizer.push(token_id)
        return detokenizer.full_text()

    def decode_once(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """As the library decodes all tokens at once. Raises RequestError where its decoder fails."""
        try:
            return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            raise _as_request_error(error, "token_ids", list(token_ids), "cannot be decoded") from error

    def is_silent(self, token_id: int, *, skip_special_tokens: bool = True) -> bool:
        """Whether a token never has a text: it is unknown, or special and skipped."""
        if skip_special_tokens and token_id in self._special_ids:
            return True
        return self._tokenizer.id_to_token(token_id) is None

    def detokenizer(self, stop: Sequence[str] = (), *, skip_special_tokens: bool = True) -> Detokenizer:
        """Follows one sequence's text, and watches it for stop strings."""
        return Detokenizer(self, stop, skip_special_tokens)


class Detokenizer:
    """The text of one sequence, token by token, as `Tokenizer.decode` gives it; finds the first stop string
    to be completed.

    A window of the latest tokens is decoded again with each new one, since a token's text depends on those
    before it: they may share a character, or a space. (Decoders that rewrite earlier words, as WordPiece's,
    are not LLaMA's: their text may differ from `decode`.)
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], skip_special_tokens: bool):
        self._tokenizer, self._stop, self._skip_special_tokens = tokenizer, stop, skip_special_tokens
        self._window: list[int] = []
        self._num_read = 0  # tokens of the window whose text is known
        self._read = ""  # the text of these alone
        self._text = ""
        self._num_taken = 0  # characters that `take` has given
        self.found: str | None = None

    def push(self, token_id: int, *, search: bool = True) -> bool:
        """Take in a token; whether it completes a stop string. Without `search` it may not.

        Raises RequestError where the tokenizer cannot decode the sequence.
        """
        if self._tokenizer.is_silent(token_id, skip_special_tokens=self._skip_special_tokens):
            return False
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._num_read < MAX_PENDING:
            return False  # perhaps the beginning of a character
        return self._append(self._next(text), search)

    def take(self) -> str:
        """The text that came since the last call, but for an end of it that may become a stop string."""
        begin = self._num_taken
        self._num_taken = max(begin, len(self._text) - self._num_held)
        return self._text[begin : self._num_taken]

    def text(self, *, include_stop: bool) -> str:
        """The text up to the stop string that was found, or through it."""
        assert self.found is not None, "no stop string was found"
        return self._text[: self._at + len(self.found) * include_stop]

    def full_text(self) -> str:
        """All of it, also bytes at its end that are no character. Nothing may be pushed afterwards."""
        return self._text + self._next(self._decode(self._window))

    def _next(self, text: str) -> str:
        """What the window's text adds to what is known; the window moves on."""
        pending = self._window[self._num_read :]
        if not pending:
            return ""
        # A decoder of byte tokens takes back a character where the bytes after it are none.
        new = text[len(self._read) :] if text.startswith(self._read) else self._decode(pending)
        self._window, self._num_read, self._read = pending, len(pending), self._decode(pending)
        return new

    def _append(self, new: str, search: bool) -> bool:
        before, self._text = len(self._text), self._text + new
        if not new or not search:
            return False
        places = [(self._text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self._stop]
        hits = [(at, stop) for at, stop in places if at >= 0]
        if hits:
            self._at, self.found = min(hits)
        return bool(hits)

    @property
    def _num_held(self) -> int:
        """Characters of the longest end of the text that a stop string begins with."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(self._text))
        for length in range(longest, 0, -1):
            if any(len(stop) > length and self._text.endswith(stop[:length]) for stop in self._stop):
                return length
        return 0

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode_once(token_ids, skip_special_tokens=self._skip_special_tokens)


def _as_request_error(error: BaseException, field: str, value: object, what: str) -> BaseException:
    """The RequestError for what the library raises: an Exception, nothing narrower, or a panic of Rust's."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return RequestError(field, value, f"{what}: {' '.join(str(error).split())[:300]}")
    return error


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
    tokenizer = _load(path)
    special = load_special_tokens(model_dir)
    bos, eos = (tokenizer.token_to_id(special.get(name, "")) for name in ("bos_token", "eos_token"))
    return Tokenizer(tokenizer, bos_token_id if bos is None else bos, eos)


def _load(path: Path) -> tokenizers.Tokenizer:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(FILE_NAME, str(path), f"cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(FILE_NAME, str(path), f"larger than {MAX_FILE_BYTES} bytes")
    if (reason := refusal(data)) is not None:
        raise ConfigError(FILE_NAME, str(path), f"cannot be read: {reason}")
    return load(data)


def load_special_tokens(model_dir: str | Path) -> dict[str, str]:
    """The texts of bos_token, eos_token and the like that tokenizer_config.json names, if there is any."""
    try:
        with (Path(model_dir) / "tokenizer_config.json").open("rb") as file:
            raw = json.loads(file.read(MAX_CONFIG_BYTES).decode())
        named = {name: raw[name] for name in raw if name.endswith("_token")}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # optional: config.json and generation_config.json name the ids too
    for name, text in named.items():
        if isinstance(text, dict):  # an AddedToken, written out
            named[name] = text.get("content")
    return {name: text for name, text in named.items() if isinstance(text, str) and _is_text(text)}


def _is_text(text: str) -> bool:
    """Whether it has no lone surrogates, which JSON may spell."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
