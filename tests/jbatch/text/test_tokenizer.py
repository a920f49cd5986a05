"""Encoding, decoding and stop strings."""

import pytest

from jbatch.errors import ConfigError, RequestError
from jbatch.text.detokenizer import MAX_PENDING
from jbatch.text.tokenizer import load_tokenizer
from tests.helpers.tokenizer_kinds import windowed
from tests.helpers.tokenizers import byte_fallback, byte_level, numbered, save, wrapped

TEXTS = ["a", "hello world", "  two  spaces ", "naïve café", "日本語", "👩‍👩‍👧", "\n\t", "\x00"]


def feed(finder, tokenizer, text):
    """Push the text's tokens until a stop string is found; how many that took, or None."""
    for count, token_id in enumerate(tokenizer.encode(text), start=1):
        if finder.push(token_id):
            return count
    return None


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(text):
    tokenizer = wrapped(byte_level())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["hi", "<s>hi"])
def test_at_most_one_bos(text):
    tokenizer = wrapped(byte_level(bos=True))
    ids = tokenizer.encode(text)
    assert ids[0] == 256 and ids.count(256) == 1 and tokenizer.decode(ids) == "hi"


def test_special_tokens_are_skipped_unless_asked_for():
    tokenizer = wrapped(byte_level())
    ids = [*tokenizer.encode("hi"), 257]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "hi</s>"


def test_ids_that_the_tokenizer_does_not_know_give_nothing():
    """A model's vocabulary is often padded beyond its tokenizer's."""
    tokenizer = wrapped(byte_level())
    assert tokenizer.decode([*tokenizer.encode("a"), 9999, *tokenizer.encode("b")]) == "ab"


def test_a_lone_surrogate_is_refused():
    with pytest.raises(RequestError, match="surrogate"):
        wrapped(byte_level()).encode("bad \ud800 text")


# Stop strings.


@pytest.mark.parametrize(
    "stop, text, count, before, through",
    [
        (["b"], "abc", 2, "a", "ab"),
        (["bcd"], "abcde", 4, "a", "abcd"),  # across tokens
        (["aab"], "aaab", 4, "a", "aaab"),  # after a false start
        (["cd", "b"], "abcd", 2, "a", "ab"),  # the first to be completed
        (["bc", "abc"], "xabc", 4, "x", "xabc"),  # both at once: the one that begins first
        (["語"], "日本語!", 9, "日本", "日本語"),  # inside one character there is nothing to find
    ],
)
def test_a_stop_string_is_found_when_it_is_complete(stop, text, count, before, through):
    tokenizer = wrapped(byte_level())
    finder = tokenizer.detokenizer(stop)
    assert feed(finder, tokenizer, text) == count
    assert finder.found in stop
    assert (finder.text(include_stop=False), finder.text(include_stop=True)) == (before, through)


def test_nothing_is_found_where_nothing_is():
    tokenizer = wrapped(byte_level())
    finder = tokenizer.detokenizer(["xyz", "bca"])
    assert feed(finder, tokenizer, "abcxybcxyxy") is None and finder.found is None


def test_a_special_token_is_a_stop_string_where_it_is_kept():
    tokenizer = wrapped(byte_level())
    assert feed(tokenizer.detokenizer(["</s>"], skip_special_tokens=False), tokenizer, "ab</s>") == 3
    assert feed(tokenizer.detokenizer(["</s>"]), tokenizer, "ab</s>") is None


# Loading.


def test_a_directory_without_a_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    "special, ids",
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, (256, 257)),
        ({"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": None}, (256, None)),
        ({"eos_token": "no such token"}, (None, None)),
        ({}, (None, None)),
        ({"bos_token": 7, "eos_token": ["</s>"]}, (None, None)),
    ],
)
def test_special_tokens_of_a_directory(tmp_path, special, ids):
    save(byte_level(), tmp_path, **special)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == ids and tokenizer.vocab_size == 258


def test_a_bos_that_only_the_models_config_names(tmp_path):
    save(byte_level(), tmp_path)
    assert load_tokenizer(tmp_path, bos_token_id=256).bos_token_id == 256
    save(byte_level(), tmp_path, bos_token="</s>")
    assert load_tokenizer(tmp_path, bos_token_id=256).bos_token_id == 257


@pytest.mark.parametrize("text", ["", "not JSON", "[" * 100_000, "[1]", "\xff"])
def test_a_broken_tokenizer_config_is_ignored(tmp_path, text):
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(text.encode("latin-1"))
    assert load_tokenizer(tmp_path).eos_token_id is None


@pytest.mark.parametrize("text", ["", "{}", "not JSON", '{"model": 5}'])
def test_a_broken_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path):
    tokenizer = numbered()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    save(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).encode("01.02.03.04.") == [1, 2, 3, 4]


# Token by token.

CHARACTERS = ["naïve café", "日本語", "👩‍👩‍👧", "a\ufffdb", "x\ufffd"]


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", CHARACTERS)
def test_the_text_grows_by_whole_characters(make, text):
    tokenizer = wrapped(make())
    detokenizer, grown = tokenizer.detokenizer(), ""
    for token_id in tokenizer.encode(text):
        detokenizer.push(token_id)
        grown += detokenizer.take()
        assert text.startswith(grown)
    assert grown == text  # a U+FFFD of its own is a character, too
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_that_are_no_character():
    tokenizer = wrapped(byte_level())
    a, e6, e97 = tokenizer.encode("a日")[:3]
    assert tokenizer.decode([a, e6, e97]) == "a\ufffd" and tokenizer.decode([e97, e6, a]) == "\ufffd\ufffda"
    tokenizer = wrapped(byte_fallback())
    good, bad = tokenizer.encode("語")[1:], 3 + 0x80  # after the space that each text begins with
    assert tokenizer.decode_once([*good, bad]) == "\ufffd" * 4  # the library takes the character back
    assert tokenizer.decode([bad, *good, bad]) == "\ufffd語\ufffd"  # as sentencepiece has it
    assert tokenizer.decode([*good[:2], *good]) == "\ufffd\ufffd語"  # a U+FFFD for each byte


@pytest.mark.parametrize("make", [byte_level, byte_fallback, windowed])
def test_endless_bytes_that_are_no_characters_are_shown_in_the_end_and_take_linear_time(make):
    tokenizer, decoded = wrapped(make()), [0]
    bad = tokenizer.encode("語한")[-1]
    real = tokenizer.decode_once
    tokenizer.decode_once = lambda ids, **options: decoded.append(len(ids)) or real(ids, **options)
    detokenizer, lengths = tokenizer.detokenizer(), []
    for _ in range(1000):
        detokenizer.push(bad)
        lengths.append(len(detokenizer.take()))
    assert sum(lengths) >= 1000 - MAX_PENDING and max(decoded) <= 2 * MAX_PENDING
    assert tokenizer.decode([bad] * 1000) == "\ufffd" * 1000


def test_tokens_without_text_within_a_character():
    tokenizer = wrapped(byte_level())
    first, *others = tokenizer.encode("日")
    ids = [first, *[257, 9999] * 100, *others]
    assert tokenizer.decode(ids) == "日"
    detokenizer = tokenizer.detokenizer()
    for token_id in ids:
        detokenizer.push(token_id)
    assert detokenizer.take() == "日"


@pytest.mark.parametrize(
    "stop, text, grown",
    [
        (["ab"], "xaaab", ["x", "", "a", "a", "ab"]),  # complete, and not searched for: it is shown
        (["aab"], "aaac", ["", "", "a", "aac"]),
        (["日本"], "日x", ["", "", "", "日x"]),
        (["b", "abcd"], "abcx", ["", "", "", "abcx"]),
        (["a"], "aa", ["a", "a"]),  # one character is all of it, never its beginning
    ],
)
def test_what_may_become_a_stop_string_is_held_back(stop, text, grown):
    tokenizer = wrapped(byte_level())
    detokenizer, pieces = tokenizer.detokenizer(stop), []
    for token_id in tokenizer.encode(text):
        detokenizer.push(token_id, search=False)
        pieces.append(detokenizer.take())
    assert pieces == grown
