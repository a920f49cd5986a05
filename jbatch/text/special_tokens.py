"""Which tokens begin and end a sequence, from every file of a tokenizer that names them. docs/tokenizers.md
has the rule.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

CONFIG_FILE, MAP_FILE = "tokenizer_config.json", "special_tokens_map.json"
MAX_BYTES = 2**24  # of each
BOS, EOS = "bos_token", "eos_token"
# What transformers assumes of a tokenizer_class where no file names the tokens.
CLASS_DEFAULTS = {
    "LlamaTokenizer": {BOS: "<s>", EOS: "</s>"},
    "CodeLlamaTokenizer": {BOS: "<s>", EOS: "</s>"},
    "GPT2Tokenizer": {BOS: "<|endoftext|>", EOS: "<|endoftext|>"},
    "Qwen2Tokenizer": {EOS: "<|endoftext|>"},
}
ADD_BOS = ("LlamaTokenizer", "CodeLlamaTokenizer")  # classes whose own definition begins each text with BOS


class SpecialTokens(NamedTuple):
    """What the files beside a tokenizer.json say of special tokens."""

    texts: dict[str, str]  # of bos_token, eos_token and the like
    defaults: dict[str, str]  # what the class assumes of those that no file names
    none: frozenset[str] = (
        frozenset()
    )  # names of which tokenizer_config.json says that there is no such token
    add_bos: bool | None = None  # add_bos_token; None: it does not say
    add_eos: bool | None = None
    class_adds_bos: bool = False  # for a tokenizer.json that adds nothing, and where add_bos does not say


class Ends(NamedTuple):
    """The ids that are added before and after each text."""

    before: list[int]
    after: list[int]


def load_special_tokens(model_dir: str | Path) -> SpecialTokens:
    """Read tokenizer_config.json, and special_tokens_map.json for what that does not name. Both are optional,
    and what cannot be read is as good as missing."""
    config, mapped = (_read_object(Path(model_dir) / name) for name in (CONFIG_FILE, MAP_FILE))
    texts = _token_texts(mapped) | _token_texts(config)
    name = config.get("tokenizer_class")
    class_name = name.removesuffix("Fast") if isinstance(name, str) else ""
    none = {name for name in (BOS, EOS) if name in config and config[name] is None} - texts.keys()
    defaults = CLASS_DEFAULTS.get(class_name, {})
    return SpecialTokens(
        texts,
        {name: text for name, text in defaults.items() if name not in texts and name not in none},
        frozenset(none),
        _flag(config, "add_bos_token"),
        _flag(config, "add_eos_token"),
        class_name in ADD_BOS,
    )


def ends_of(tokenizer: tokenizers.Tokenizer) -> Ends | None:
    """What a tokenizer.json adds to each text by itself; None where it does more than that."""
    if tokenizer.post_processor is None:
        return Ends([], [])
    return _ends(json.loads(tokenizer.post_processor.__getstate__()))


def _ends(processor: dict[str, Any]) -> Ends | None:
    kind = processor["type"]
    if kind == "ByteLevel":  # it moves offsets
        return Ends([], [])
    if kind in ("BertProcessing", "RobertaProcessing"):
        return Ends([processor["cls"][1]], [processor["sep"][1]])
    if kind == "Sequence":
        before: list[int] = []
        after: list[int] = []
        for part in processor["processors"]:
            if (ends := _ends(part)) is None:
                return None
            before, after = [*ends.before, *before], [*after, *ends.after]
        return Ends(before, after)
    return _template_ends(processor) if kind == "TemplateProcessing" else None


def _template_ends(processor: dict[str, Any]) -> Ends | None:
    places = [next(iter(piece)) for piece in processor["single"]]
    if places.count("Sequence") != 1:
        return None
    at = places.index("Sequence")
    ids = [
        [] if "Sequence" in piece else processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
        for piece in processor["single"]
    ]
    return Ends(list(itertools.chain(*ids[:at])), list(itertools.chain(*ids[at:])))


def _flag(config: dict[str, Any], name: str) -> bool | None:
    return config[name] if isinstance(config.get(name), bool) else None


def _token_texts(named: dict[str, Any]) -> dict[str, str]:
    """The texts of the special tokens that a file names; an AddedToken may be written out."""
    texts = {name: token for name, token in named.items() if name.endswith("_token")}
    for name, token in texts.items():
        if isinstance(token, dict):
            texts[name] = token.get("content")
    return {name: text for name, text in texts.items() if isinstance(text, str) and text and _is_text(text)}


def _is_text(text: str) -> bool:
    """Whether it has no lone surrogates, which JSON may spell."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = json.loads(file.read(MAX_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return {}  # config.json and generation_config.json name the ids too
    return raw if isinstance(raw, dict) else {}
