"""Small tokenizers of every kind that models are published with, and what texts their ids stand for."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from jbatch.text.tokenizer import Tokenizer
from tests.helpers.tokenizers import byte_fallback, byte_level, merged, numbered, wrapped

SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
PIECES = (
    *("▁", "▁▁▁", "▁i", "i", "▁is", "s", "▁Paris", "▁return", "x", "▁x", ".", "▁.", ":", "\n"),
    *("é", "日本", "▁日", "語", "😀", "\ufffd", "a▁b", "<0x", "'", "▁'s"),
)
TEXTS = [
    "naïve café 日本語 中文 한국어 👩‍👩‍👧 😀 हिन्दी",
    "the is return  x\n 日本 语 😀😁😂",
    "a b c éü",
] * 20
BYTE_STEPS = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())


def sentencepiece(*, strip: bool = True, bos: bool = False, metaspace: bool = False) -> tokenizers.Tokenizer:
    """As Llama 2's; without `strip`, as Gemma's, no space in front; `metaspace`: with "legacy": false."""
    vocab = {piece: idx for idx, piece in enumerate((*SPECIAL, *BYTES, *PIECES))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        spaces = normalizers.Replace(" ", "▁")
        front = [normalizers.Prepend("▁")] if strip else []
        tokenizer.normalizer = normalizers.Sequence([*front, spaces])
    steps = [*BYTE_STEPS, decoders.Strip(" ", 1, 0)] if strip else [*BYTE_STEPS]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama_3() -> tokenizers.Tokenizer:
    """Byte-level, with merges that are ignored where a whole word is in the vocabulary, and a BOS."""
    trained = merged(TEXTS)
    tokenizer = trained
    model = tokenizer.model
    model.ignore_merges = True
    tokenizer.model = model
    split = pre_tokenizers.Split(Regex(r"\s?\p{L}+|\s+|[^\s\p{L}]+"), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    bos = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos])
    return tokenizer


def with_added_tokens() -> tokenizers.Tokenizer:
    """Byte-level, as DeepSeek's: added tokens with characters that are no bytes' names, special or not."""
    tokenizer = merged(TEXTS)
    tokenizer.add_special_tokens(["<｜begin▁of▁sentence｜>"])
    tokenizer.add_tokens(["<|im_end|>", "日本語", "é", "  ", "\ufffd"])
    return tokenizer


def unigram(*, byte_fallback: bool = False) -> tokenizers.Tokenizer:
    """As sentencepiece's Unigram: a decoder of spaces alone, or one of bytes."""
    pieces = (*SPECIAL, *BYTES, *PIECES) if byte_fallback else (*SPECIAL, *PIECES)
    vocab = [(piece, -float(idx)) for idx, piece in enumerate(pieces)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if byte_fallback:
        tokenizer.decoder = decoders.Sequence([*BYTE_STEPS, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer


def words(decoder: decoders.Decoder | None, *pieces: str) -> tokenizers.Tokenizer:
    """A vocabulary of words, with any decoder."""
    vocab = {word: idx for idx, word in enumerate((*SPECIAL, *pieces))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def windowed() -> tokenizers.Tokenizer:
    """Sentencepiece's, with a decoder that no rule of bytes describes."""
    tokenizer = sentencepiece()
    steps = [decoders.Replace(Regex("▁"), " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return tokenizer


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "sentencepiece": sentencepiece,
    "sentencepiece with BOS": lambda: sentencepiece(bos=True),
    "sentencepiece by Metaspace": lambda: sentencepiece(metaspace=True),
    "sentencepiece without a space in front": lambda: sentencepiece(strip=False),
    "sentencepiece with merges": byte_fallback,
    "sentencepiece by a regular expression": windowed,
    "bytes": byte_level,
    "bytes with BOS": lambda: byte_level(bos=True),
    "merged bytes": lambda: merged(TEXTS),
    "merged bytes, whole words first": llama_3,
    "merged bytes with added tokens": with_added_tokens,
    "Unigram": unigram,
    "Unigram with bytes": lambda: unigram(byte_fallback=True),
    "numbered words": numbered,
    "words with spaces between": lambda: words(None, "a", "b", "日本", "is", "."),
    "WordPiece": lambda: words(decoders.WordPiece(), "a", "##b", "##日", "is", ".", "'", "s"),
    "BPE with ends of words": lambda: words(decoders.BPEDecoder(), "a", "b</w>", "日</w>", "is", ".</w>"),
}


WINDOWED = (  # whose decoders no rule of bytes describes
    *("sentencepiece by a regular expression", "words with spaces between", "WordPiece"),
    "BPE with ends of words",
)


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    return wrapped(KINDS[kind]())


def library_text(tokenizer: Tokenizer, token_ids: list[int], *, skip_special_tokens: bool) -> str:
    """What all tokens' text is: the library's, but where sentencepiece's bytes are no characters. There the
    library writes U+FFFD for good characters, too, and sentencepiece itself for each bad byte alone."""
    library = tokenizer._tokenizer
    text = library.decode(token_ids, skip_special_tokens=skip_special_tokens)
    if "\ufffd" not in text or b"ByteFallback" not in library.decoder.__getstate__():
        return text
    special = {idx for idx, token in library.get_added_tokens_decoder().items() if token.special}
    names = [library.id_to_token(idx) for idx in token_ids if not (skip_special_tokens and idx in special)]
    fixed, run = [], b""
    for name in [*(name for name in names if name is not None), ""]:
        if name in BYTES:
            run += bytes([BYTES.index(name)])
        else:
            fixed += [*_by_characters(run), name]
            run = b""
    return library.decoder.decode([name for name in fixed if name])


def _by_characters(raw: bytes) -> list[str]:
    """Each longest character that bytes begin with, or a U+FFFD for a byte of none."""
    found = []
    while raw:
        for length in (4, 3, 2, 1):
            try:
                char = raw[:length].decode()
            except UnicodeDecodeError:
                continue
            if len(char) == 1:
                break
        else:
            char, length = "\ufffd", 1
        found.append(char)
        raw = raw[length:]
    return found


def random_ids(rng: random.Random, tokenizer: Tokenizer) -> list[int]:
    """Of a text in many scripts, or any at all: special and unknown ones among them, parts of characters."""
    if rng.random() < 0.4:
        return rng.choices(range(tokenizer.vocab_size + 2), k=rng.randint(1, 20))
    text = " ".join(rng.choices(TEXTS[0].split(" "), k=rng.randint(1, 5)))
    ids = tokenizer.encode(text, add_special_tokens=rng.random() < 0.5)
    ids = ids[rng.randrange(len(ids)) :] if ids and rng.random() < 0.3 else ids  # also within a character
    if ids and rng.random() < 0.3:
        ids.insert(rng.randrange(len(ids)), rng.randrange(tokenizer.vocab_size))
    return ids[:40]
