"""What each token adds to a text, in bytes: a tokenizer's decoder, taken apart.

The decoders of LLaMA's tokenizers give a token the same bytes wherever it stands, but for a space at the
beginning of a text. So a text grows by bytes, with no part of it decoded twice, and a token that is a part of
a character has bytes of its own. A decoder that does more has no such rule.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import tokenizers
from tokenizers import decoders


@dataclasses.dataclass(frozen=True)
class ByteRule:
    """How a token's name in the vocabulary becomes bytes."""

    byte_level: bool = False  # each character of the name stands for a byte
    byte_fallback: bool = False  # "<0xE6>" is a byte; where bytes are no character, each is a U+FFFD
    replaced: tuple[tuple[str, str, str], ...] = ()  # what, by what, and by what in a text's first token
    stripped: bytes = b""  # a character that texts lose at their beginning
    num_stripped: int = 0  # how many of them at most

    @property
    def first_differs(self) -> bool:
        """Whether the first token of a text may have other bytes than it has elsewhere."""
        return any(by != by_first for _, by, by_first in self.replaced)

    def bytes_of(self, name: str, *, first: bool) -> bytes:
        """The bytes of the token; `first`: where no token with a text is before it."""
        if self.byte_level:
            chars = [_BYTES.get(char) for char in name]
            return name.encode() if None in chars else bytes(char for char in chars if char is not None)
        for what, by, by_first in self.replaced:
            name = name.replace(what, by_first if first else by)
        if self.byte_fallback and (byte := _fallback_byte(name)) is not None:
            return bytes([byte])
        return name.encode()


def byte_rule(decoder: decoders.Decoder | None) -> ByteRule | None:
    """The rule that a tokenizer's decoder follows; None for one whose tokens have no bytes of their own."""
    if decoder is None:  # the library puts spaces between tokens
        return None
    rule, fused = ByteRule(), False  # fused: the tokens are one text already
    for step in _steps(json.loads(decoder.__getstate__())):
        if step["type"] == "Fuse":
            fused = True
        elif fused:
            if step["type"] != "Strip" or step["stop"] or not step["content"].isascii() or rule.stripped:
                return None
            rule = dataclasses.replace(rule, stripped=step["content"].encode(), num_stripped=step["start"])
        elif step["type"] == "ByteLevel" and rule == ByteRule():
            rule, fused = ByteRule(byte_level=True), True
        elif step["type"] == "ByteFallback":
            rule = dataclasses.replace(rule, byte_fallback=True)
        elif (replaced := _replacement(step)) is not None and not rule.byte_fallback:
            rule = dataclasses.replace(rule, replaced=(*rule.replaced, replaced))
        else:
            return None
    return rule


def _steps(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [step for part in state["decoders"] for step in _steps(part)]


def _replacement(step: dict[str, Any]) -> tuple[str, str, str] | None:
    """What a step puts for what; None for a step that does something else."""
    if step["type"] == "Metaspace":
        return step["replacement"], " ", " " if step["prepend_scheme"] == "never" else ""
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"], step["content"]
    return None


def _fallback_byte(name: str) -> int | None:
    """The byte that a name such as "<0xE6>" stands for."""
    found = _FALLBACK.fullmatch(name)
    return None if found is None else int(found[1], 16)


def _byte_level_alphabet() -> dict[str, int]:
    """The bytes by the characters that stand for them in byte-level vocabularies: those that can be printed
    stand for themselves."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + idx): byte for idx, byte in enumerate(others)}


_BYTES = _byte_level_alphabet()
_FALLBACK = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenTable(dict[int, bytes | None]):
    """The bytes of tokens by id, in a text that has begun; each is worked out when it is first looked up.

    Args:
      skipped: ids of tokens that have no text here.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, rule: ByteRule, skipped: frozenset[int]):
        super().__init__()
        self.rule = rule
        self._tokenizer, self._skipped = tokenizer, skipped

    def __missing__(self, token_id: int) -> bytes | None:
        self[token_id] = found = self.piece(token_id, first=False)
        return found

    def piece(self, token_id: int, *, first: bool) -> bytes | None:
        """The bytes of a token; None for one without text: it is skipped, or the tokenizer has no such id."""
        name = None if token_id in self._skipped else self._tokenizer.id_to_token(token_id)
        return None if name is None else self.rule.bytes_of(name, first=first)
