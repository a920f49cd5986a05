"""Text to token ids and back: a model directory's tokenizer.json."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import decoders

from jbatch.errors import ConfigError, RequestError, stacklevel_of_caller
from jbatch.text.detokenizer import (
    MAX_TAIL,
    REPLACEMENT,
    ByteText,
    Detokenizer,
    GrowingText,
    WindowText,
)
from jbatch.text.special_tokens import BOS, EOS, Ends, SpecialTokens, ends_of, load_special_tokens
from jbatch.text.token_bytes import TokenTable, byte_rule
from jbatch.text.tokenizer_probe import load, refusal

FILE_NAME = "tokenizer.json"
MAX_FILE_BYTES = 2**28


class TokenText(NamedTuple):
    """What one token is by itself, in a text that has begun."""

    text: str | None  # no two tokens of different bytes have the same
    raw: bytes | None  # what it adds to a text that keeps special tokens; None where that is not known
    special: bool


class Tokenizer:
    """A fast tokenizer.

    Args:
      special_tokens: the texts of bos_token, eos_token and the like, for chat templates.
      ends: what is added to each text; None: what the library adds by itself.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        *,
        special_tokens: Mapping[str, str] | None = None,
        ends: Ends | None = None,
    ):
        self._tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id = bos_token_id, eos_token_id
        self.special_tokens = dict(special_tokens or {})
        self._ends = ends or ends_of(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._tables: dict[bool, TokenTable] = {}  # by whether special tokens are skipped
        if (rule := byte_rule(tokenizer.decoder)) is not None:
            for skip, skipped in ((True, self._special_ids), (False, frozenset[int]())):
                self._tables[skip] = TokenTable(tokenizer, rule, skipped)

    @property
    def vocab_size(self) -> int:
        """How many ids it may produce, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text, with what the tokenizer adds to each text: mostly a BOS, which a text that
        begins with one gets no second time.

        Raises RequestError for invalid Unicode, and where the tokenizer fails.
        """
        ends = self._ends if add_special_tokens else None
        try:
            by_itself = add_special_tokens and ends is None
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=by_itself).ids
        except (TypeError, UnicodeEncodeError) as error:  # a lone surrogate
            raise RequestError("prompt", text, "must be text without lone surrogates") from error
        except BaseException as error:
            raise _as_request_error(error, "prompt", text, "cannot be encoded") from error
        if ends is None:
            return ids
        before = ends.before
        if before and before[-1] == self.bos_token_id and ids[:1] == before[-1:]:
            before = before[:-1]  # the text names it
        return [*before, *ids, *ends.after]

    def decode(
        self, token_ids: Sequence[int], *, after: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> str:
        """The text of tokens; ids that the tokenizer does not know give nothing.

        Args:
          after: the tokens before these, whose text is left out: of all tokens' text it is what these add. A
            character that begins in `after` is in it whole.

        Raises RequestError where the tokenizer's decoder fails.
        """
        if not self._tables:
            tail, ids = list(after[-MAX_TAIL:]), list(token_ids)
            text, before = (
                self.decode_once(part, skip_special_tokens=skip_special_tokens) for part in (tail + ids, tail)
            )
            if REPLACEMENT not in text and text.startswith(before):
                return text[len(before) :]
        growing = self._growing(after, skip_special_tokens)  # where bytes are no text, as they are shown
        return growing.extend(token_ids) + growing.rest()

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

    def token_text(self, token_id: int) -> TokenText:
        """One token by itself: what it adds to a text that has begun, in bytes, and a text for these: it is
        "bytes:\\xe6\\x97" where they are no characters, as OpenAI writes it.

        Raises RequestError where the tokenizer's decoder fails.
        """
        special = token_id in self._special_ids
        if self._tokenizer.id_to_token(token_id) is None:
            return TokenText(None, None, special)
        raw = self._tables[False][token_id] if self._tables else self._window_bytes(token_id)
        if raw is None:
            return TokenText(self._tokenizer.id_to_token(token_id), None, special)
        try:
            return TokenText(raw.decode(), raw, special)
        except UnicodeDecodeError:
            return TokenText(f"bytes:{repr(raw)[2:-1]}", raw, special)

    def text_offsets(
        self, token_ids: Sequence[int], *, after: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> list[int]:
        """Where each token begins in `decode` of the same arguments, in characters; for one that begins
        within a character, where that begins. Raises what `decode` raises."""
        growing, offsets, num_chars = self._growing(after, skip_special_tokens), [], 0
        for token_id in token_ids:
            offsets.append(num_chars)
            num_chars += len(growing.extend((token_id,)))
        return offsets

    def detokenizer(
        self, stop: Sequence[str] = (), *, after: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> Detokenizer:
        """Follows the text of one sequence behind that of the tokens `after`, as `decode` gives it, and
        watches it for stop strings."""
        return Detokenizer(self._growing(after, skip_special_tokens), stop)

    def _growing(self, after: Sequence[int], skip: bool) -> GrowingText:
        if self._tables:
            return ByteText(self._tables[skip], after)
        return WindowText(
            lambda ids: self.decode_once(ids, skip_special_tokens=skip),
            lambda token_id: self.is_silent(token_id, skip_special_tokens=skip),
            after,
        )

    def _window_bytes(self, token_id: int) -> bytes | None:
        """What a token adds to the text of itself, by a decoder without a rule; None: that cannot be told."""
        if isinstance(self._tokenizer.decoder, decoders.BPEDecoder | decoders.CTC):
            return None  # it depends on what follows
        once, twice = ([token_id] * num for num in (1, 2))
        before, both = (self.decode_once(ids, skip_special_tokens=False) for ids in (once, twice))
        if REPLACEMENT in both or not both.startswith(before):
            return None
        return both[len(before) :].encode()


def _as_request_error(error: BaseException, field: str, value: object, what: str) -> BaseException:
    """The RequestError for what the library raises: an Exception, nothing narrower, or a panic of Rust's."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return RequestError(field, value, f"{what}: {' '.join(str(error).split())[:300]}")
    return error


def load_tokenizer(
    model_dir: str | Path, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> Tokenizer | None:
    """The tokenizer of a model directory, or None where it has none (token-id prompts still work).

    docs/tokenizers.md says which tokens begin and end a sequence.

    Args:
      bos_token_id, eos_token_id: of config.json, for what the tokenizer's files do not name.

    Raises:
      ConfigError: for a tokenizer.json that cannot be read.
    """
    path = Path(model_dir) / FILE_NAME
    if not path.exists():
        return None
    tokenizer = _load(path)
    special = load_special_tokens(model_dir)
    _register(tokenizer, (special.texts.get(name) for name in (BOS, EOS)))
    texts, ids = dict(special.texts), dict[str, int | None]()
    for name, of_model in ((BOS, bos_token_id), (EOS, eos_token_id)):
        default = special.defaults.get(name, "")
        token_id = tokenizer.token_to_id(texts.get(name, ""))
        if token_id is None:
            token_id = tokenizer.token_to_id(default)
        if token_id is None and name not in special.none:
            token_id = of_model
        ids[name] = token_id
        if name not in texts and token_id is not None:
            texts[name] = tokenizer.id_to_token(token_id) or ""
    ends = _chosen_ends(ends_of(tokenizer), special, ids[BOS], ids[EOS])
    return Tokenizer(tokenizer, ids[BOS], ids[EOS], special_tokens=texts, ends=ends)


def _register(tokenizer: tokenizers.Tokenizer, texts: Iterable[str | None]) -> None:
    """Make special what is named so: some files list such a token among the others alone."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for text in texts:
        if text is not None and text not in added and tokenizer.token_to_id(text) is not None:
            tokenizer.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False)])


def _chosen_ends(ends: Ends | None, special: SpecialTokens, bos: int | None, eos: int | None) -> Ends | None:
    """What is added to each text: what tokenizer.json adds, but BOS and EOS as tokenizer_config.json says."""
    if ends is None:
        return None
    add_bos, add_eos = special.add_bos, special.add_eos
    if add_bos is None and special.class_adds_bos and not (ends.before or ends.after):
        add_bos = True
    for name, wanted, token_id in (("bos", special.add_bos, bos), ("eos", add_eos, eos)):
        if wanted and token_id is None:
            reason = f"add_{name}_token is true, and no file names that token"
            warnings.warn(f"tokenizer_config.json: {reason}", stacklevel=stacklevel_of_caller())
    return Ends(_with(ends.before, bos, add_bos), _with(ends.after, eos, add_eos))


def _with(ids: list[int], token_id: int | None, wanted: bool | None) -> list[int]:
    """The ids with or without one of them, or as they are."""
    if token_id is None or wanted is None or wanted == (token_id in ids):
        return ids
    return [token_id, *ids] if wanted else [other for other in ids if other != token_id]


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
