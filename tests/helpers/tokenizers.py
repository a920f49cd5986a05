"""Small tokenizers made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from jbatch.tokenizer import Tokenizer


def numbered(vocab_size: int = 97) -> tokenizers.Tokenizer:
    """Token 7 is the text "07.": what an engine generated can be read off its text."""
    vocab = {f"{idx:02d}.": idx for idx in range(vocab_size)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="00."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(".", "merged_with_previous")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def byte_level(bos: bool = False) -> tokenizers.Tokenizer:
    """256 bytes, and <s> 256 and </s> 257; with `bos`, every prompt begins with <s>."""
    alphabet = {char: idx for idx, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    return tokenizer


def wrapped(tokenizer: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(tokenizer, tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>"))


def save(tokenizer: tokenizers.Tokenizer, model_dir: Path, **special: object) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(model_dir / "tokenizer.json"))
    (model_dir / "tokenizer_config.json").write_text(json.dumps(special))
