"""Small tokenizers made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jbatch.text.tokenizer import Tokenizer


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


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2's: a space is "▁", each text begins with one, and what has no token of its own is bytes."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefgé日本",
        "▁ab",
        "本日",
    ]
    vocab = {piece: idx for idx, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁a", "b"), ("本", "日")]
    vocab["▁a"] = len(vocab)
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spaces, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def merged(texts: list[str], vocab_size: int = 400) -> tokenizers.Tokenizer:
    """A byte-level BPE trained on texts: some of its tokens begin or end within a character."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def wrapped(tokenizer: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(tokenizer, tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>"))


def save(tokenizer: tokenizers.Tokenizer, model_dir: Path, **special: object) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(model_dir / "tokenizer.json"))
    (model_dir / "tokenizer_config.json").write_text(json.dumps(special))
