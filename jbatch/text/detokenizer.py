"""Texts that grow token by token, behind the text of what came before; stop strings in them."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from jbatch.text.token_bytes import TokenTable

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character, or not yet
MAX_PENDING = 32  # tokens without the end of a character: then they are no text. A character has at most 4
MAX_TAIL = 64  # tokens of a prompt that a decoder without a rule of bytes sees before the output
_NO_CHARACTER = re.compile("[\udc80-\udcff]")


class GrowingText(Protocol):
    """The text that tokens add to the text of the tokens before them, as it becomes known."""

    def extend(self, token_ids: Sequence[int]) -> str:
        """What these tokens make known; the beginning of a character is held back."""

    def rest(self) -> str:
        """What is held back, as it is shown where nothing follows. Nothing may be added afterwards."""


class ByteText:
    """A GrowingText by the bytes of its tokens.

    Args:
      after: the tokens before it. A character that begins in them and ends in this text is in this text;
        where it does not end, what stands for its bytes in theirs is not shown again.
    """

    def __init__(self, table: TokenTable, after: Sequence[int] = ()):
        self._table = table
        self._pending = b""  # the beginning of a character
        self._first = table.rule.first_differs  # and no token with a text yet
        self._num_stripped = table.rule.num_stripped  # how many characters the beginning may still lose
        self._begun = ""  # what the text before shows of a character that may end in this one
        if after:
            self._follow(after)

    def extend(self, token_ids: Sequence[int]) -> str:
        raw = self._pending + self._bytes(token_ids)
        text, num_read = self._decode(raw, final=False)
        self._pending = raw[num_read:]
        return self._less_begun(text)

    def rest(self) -> str:
        return self._less_begun(self._decode(self._pending, final=True)[0])

    def _follow(self, token_ids: Sequence[int]) -> None:
        """Take in the tokens before: the first ones, until the text has begun, and the last ones, whose bytes
        may begin a character."""
        num = 0
        while num < len(token_ids) and (self._first or self._num_stripped):
            self.extend(token_ids[num : num + 1])
            num += 1
        tail, at = b"", len(token_ids)
        while at > num and len(tail) < 3:  # bytes of a character that has begun, at most
            at -= 1
            tail = (self._table[token_ids[at]] or b"") + tail
        raw = self._pending + tail if at == num else tail
        self._pending = raw[self._decode(raw, final=False)[1] :]
        self._begun = self._decode(self._pending, final=True)[0]

    def _bytes(self, token_ids: Sequence[int]) -> bytes:
        table = self._table
        pieces = [piece for token_id in token_ids if (piece := table[token_id]) is not None]
        if self._first and pieces:
            first = next(token_id for token_id in token_ids if table[token_id] is not None)
            pieces[0] = table.piece(first, first=True) or b""
            self._first = False
        raw = b"".join(pieces)
        if self._num_stripped and raw:
            raw = self._less_stripped(raw)
        return raw

    def _less_stripped(self, raw: bytes) -> bytes:
        kept = raw.lstrip(self._table.rule.stripped)
        num = min(len(raw) - len(kept), self._num_stripped)
        self._num_stripped = self._num_stripped - num if num == len(raw) else 0
        return raw[num:]

    def _decode(self, raw: bytes, *, final: bool) -> tuple[str, int]:
        """The characters, and how many bytes they took."""
        try:
            return codecs.utf_8_decode(raw, "strict", final)
        except UnicodeDecodeError:
            if not self._table.rule.byte_fallback:
                return codecs.utf_8_decode(raw, "replace", final)
        text, num_read = codecs.utf_8_decode(raw, "surrogateescape", final)  # a surrogate for each byte
        return _NO_CHARACTER.sub(REPLACEMENT, text), num_read

    def _less_begun(self, text: str) -> str:
        if text and self._begun:
            text, self._begun = text.removeprefix(self._begun), ""
        return text


class WindowText:
    """A GrowingText by a decoder that knows whole texts alone: a window of the latest tokens is decoded again
    with each new one, since a token's text depends on those before it.

    Where a decoder rewrites earlier words, its text may differ from that of all tokens at once.

    Args:
      decode: the text of tokens.
      is_silent: whether a token never has a text.
      after: the tokens before.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        is_silent: Callable[[int], bool],
        after: Sequence[int] = (),
    ):
        self._decode, self._is_silent = decode, is_silent
        self._window: list[int] = []
        self._num_read = 0  # tokens of the window whose text is known
        self._read = ""  # the text of these alone
        self._begun = ""
        self.extend(after[-MAX_TAIL:])
        self._begun = self._new(self._decode(self._window))

    def extend(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push(token_id) for token_id in token_ids])

    def rest(self) -> str:
        return self._less_begun(self._new(self._decode(self._window)))

    def _push(self, token_id: int) -> str:
        if self._is_silent(token_id):
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._num_read < MAX_PENDING:
            return ""  # perhaps the beginning of a character
        new, pending = self._new(text), self._window[self._num_read :]
        self._window, self._num_read, self._read = pending, len(pending), self._decode(pending)
        return self._less_begun(new)

    def _new(self, text: str) -> str:
        """What the window's text adds to what is known."""
        # A decoder of byte tokens takes back a character where the bytes after it are none.
        if text.startswith(self._read):
            return text[len(self._read) :]
        return self._decode(self._window[self._num_read :])

    def _less_begun(self, text: str) -> str:
        if text and self._begun:
            text, self._begun = text.removeprefix(self._begun), ""
        return text


class Detokenizer:
    """The text of one sequence, token by token; finds the first stop string to be completed."""

    def __init__(self, growing: GrowingText, stop: Sequence[str]):
        self._growing, self._stop = growing, stop
        self._num_looked_back = max(map(len, stop), default=1) - 1  # where a stop string may have begun
        self._parts: list[str] = []
        self._num_chars = 0
        self._tail = ""  # the last characters
        self._not_taken: list[str] = []  # what `take` has not given
        self.found: str | None = None

    def push(self, token_id: int, *, search: bool = True) -> bool:
        """Take in a token; whether it completes a stop string. Without `search` it may not.

        Raises RequestError where the tokenizer cannot decode the sequence.
        """
        new = self._growing.extend((token_id,))
        if not new:
            return False
        window, begin = self._tail + new, self._num_chars - len(self._tail)
        if search and self._stop:
            self._search(window, begin)
        self._parts.append(new)
        self._num_chars += len(new)
        self._not_taken.append(new)
        self._tail = window[max(0, len(window) - self._num_looked_back) :]
        return self.found is not None

    def take(self) -> str:
        """The text that came since the last call, but for an end of it that may become a stop string."""
        text = "".join(self._not_taken)
        num = len(text) - self._num_held(text)
        self._not_taken = [text[num:]]
        return text[:num]

    def text(self, *, include_stop: bool) -> str:
        """The text up to the stop string that was found, or through it."""
        assert self.found is not None, "no stop string was found"
        return "".join(self._parts)[: self._at + len(self.found) * include_stop]

    def _search(self, window: str, begin: int) -> None:
        """Look for stop strings that end in the last characters of the window, which begins at `begin`."""
        num_before = self._num_chars - begin
        places = [(window.find(stop, max(0, num_before - len(stop) + 1)), stop) for stop in self._stop]
        hits = [(begin + at, stop) for at, stop in places if at >= 0]
        if hits:
            self._at, self.found = min(hits)

    def _num_held(self, text: str) -> int:
        """Characters of the longest end of a text that a stop string begins with."""
        for length in range(min(self._num_looked_back, len(text)), 0, -1):
            if any(len(stop) > length and text.endswith(stop[:length]) for stop in self._stop):
                return length
        return 0
