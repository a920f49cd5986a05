"""Texts behind prompts, over every kind of tokenizer: what an output's tokens add to the prompt's text."""

import itertools
import random

import pytest

from jbatch.text.detokenizer import MAX_PENDING
from tests.helpers.sizes import sized
from tests.helpers.tokenizer_kinds import (
    KINDS,
    WINDOWED,
    library_text,
    random_ids,
    sentencepiece,
    tokenizer_of,
)
from tests.helpers.tokenizers import byte_level, merged, wrapped

NUM_CASES = sized(120, 1500)  # for each kind


def cases(kind):
    """Prompts and outputs at random, and whether special tokens are skipped. What a decoder without a rule of
    bytes makes of bytes that are no character is left out."""
    rng, tokenizer = random.Random(kind), tokenizer_of(kind)
    for _ in range(NUM_CASES):
        whole = random_ids(rng, tokenizer)
        cut = rng.choice((0, 1, len(whole) // 2, rng.randint(0, len(whole))))
        skip = rng.random() < 0.5
        if kind not in WINDOWED or "\ufffd" not in tokenizer.decode_once(whole, skip_special_tokens=skip):
            yield tokenizer, whole[:cut], whole[cut:], skip


def common_beginning(one, other):
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(char for char, _ in pairs)


def added_text(tokenizer, prompt, output, skip):
    """decode(prompt + output) less decode(prompt), by the library; what that shows of a character which the
    output ends is not of the prompt."""
    whole, before = (
        library_text(tokenizer, ids, skip_special_tokens=skip) for ids in (prompt + output, prompt)
    )
    common = common_beginning(whole, before)
    assert not before[len(common) :].strip("\ufffd"), (
        "the rest of the prompt's text is a character's beginning"
    )
    return whole[len(common) :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_what_the_output_adds_to_the_prompt(kind):
    spaces = characters = 0
    for tokenizer, prompt, output, skip in cases(kind):
        text = tokenizer.decode(output, after=prompt, skip_special_tokens=skip)
        assert text == added_text(tokenizer, prompt, output, skip), (prompt, output, skip)
        alone = tokenizer.decode(output, skip_special_tokens=skip)
        if kind not in WINDOWED:
            assert alone == library_text(tokenizer, output, skip_special_tokens=skip)
        spaces += text == f" {alone}"
        characters += "\ufffd" in alone and "\ufffd" not in text
    if kind in ("sentencepiece", "sentencepiece with BOS", "sentencepiece by Metaspace"):
        assert spaces > 0
    if kind in ("sentencepiece", "bytes", "merged bytes", "Unigram with bytes"):
        assert characters > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_grows_token_by_token_behind_a_prompt_cut_anywhere(kind):
    rng = random.Random(kind)
    for tokenizer, prompt, output, skip in cases(kind):
        detokenizer = tokenizer.detokenizer(after=prompt, skip_special_tokens=skip)
        grown = [""]
        for token_id in output:
            assert not detokenizer.push(token_id)
            grown.append(grown[-1] + detokenizer.take())
        for num in rng.sample(range(len(output) + 1), min(4, len(output) + 1)):
            text = tokenizer.decode(output[:num], after=prompt, skip_special_tokens=skip)
            assert text.startswith(grown[num]) and not text[len(grown[num]) :].strip("\ufffd")
            whole = tokenizer.decode(output, after=prompt, skip_special_tokens=skip)
            rest = tokenizer.decode(output[num:], after=prompt + output[:num], skip_special_tokens=skip)
            common = common_beginning(text, whole)
            assert whole == common + rest and not text[len(common) :].strip("\ufffd")


@pytest.mark.parametrize("kind", KINDS)
def test_every_stop_string_that_occurs_is_found_at_the_token_that_completes_it(kind):
    rng, num = random.Random(kind), 0
    for tokenizer, prompt, output, skip in cases(kind):
        follower = tokenizer.detokenizer(after=prompt, skip_special_tokens=skip)
        known = [""]
        for token_id in output:
            follower.push(token_id)
            known.append(known[-1] + follower.take())
        text = known[-1]
        stops = {text[at : at + length] for at in range(len(text)) for length in (1, 2, 3, 5, 8)}
        for stop in rng.sample(sorted(stops), min(len(stops), sized(12, 1000))):
            finder = tokenizer.detokenizer([stop], after=prompt, skip_special_tokens=skip)
            at = next(num for num, token_id in enumerate(output, start=1) if finder.push(token_id))
            assert at == next(num for num, text in enumerate(known) if stop in text), (prompt, output, stop)
            before = text[: text.index(stop)]
            assert finder.found == stop
            assert finder.text(include_stop=False) == before
            assert finder.text(include_stop=True) == before + stop
            num += 1
    assert num > NUM_CASES


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_by_themselves_are_the_text_in_bytes(kind):
    """Behind a prompt that has a text and ends no character."""
    rng = random.Random(kind)
    tokenizer = tokenizer_of(kind)
    prompt, num = tokenizer.encode("is a is", add_special_tokens=False), 0
    for _ in range(NUM_CASES):
        output = random_ids(rng, tokenizer)
        text = tokenizer.decode(output, after=prompt, skip_special_tokens=False)
        tokens = [tokenizer.token_text(token_id) for token_id in output]
        if "\ufffd" in text or any(token.raw is None and token.text for token in tokens):
            continue
        ends = list(itertools.accumulate((token.raw or b"" for token in tokens), initial=b""))
        assert ends[-1].decode() == text
        offsets = tokenizer.text_offsets(output, after=prompt, skip_special_tokens=False)
        assert offsets == [len(end.decode(errors="ignore")) for end in ends[:-1]]
        num += 1
    assert num > NUM_CASES / 20 or kind in WINDOWED
    texts = [tokenizer.token_text(token_id) for token_id in range(tokenizer.vocab_size)]
    by_bytes = {token.raw: token.text for token in texts if token.raw is not None}
    assert len(set(by_bytes.values())) == len(by_bytes), "tokens of different bytes have different texts"


def test_parts_of_characters_have_their_bytes():
    tokenizer = wrapped(byte_level())
    first, *_ = tokenizer.encode("日")
    assert tokenizer.token_text(first) == ("bytes:\\xe6", b"\xe6", False)
    assert tokenizer.token_text(257) == ("</s>", b"</s>", True)
    assert tokenizer.token_text(9999) == (None, None, False)
    ids = {name: tokenizer_of("sentencepiece")._tokenizer.token_to_id(name) for name in ("▁i", "i", "<0xE6>")}
    assert [tokenizer_of("sentencepiece").token_text(idx)[:2] for idx in ids.values()] == [
        (" i", b" i"), ("i", b"i"), ("bytes:\\xe6", b"\xe6"),
    ]  # fmt: skip
    assert (
        tokenizer_of("WordPiece").token_text(4).text == "b"
        and tokenizer_of("WordPiece").token_text(3).text == " a"
    )


def test_offsets_are_places_in_the_text():
    tokenizer = wrapped(sentencepiece())
    ids = [
        tokenizer._tokenizer.token_to_id(name) for name in ("▁is", "<0xE6>", "<0x97>", "<0xA5>", "</s>", "x")
    ]
    assert tokenizer.decode(ids, after=[ids[0]]) == " is日x"
    assert tokenizer.text_offsets(ids, after=[ids[0]]) == [0, 3, 3, 3, 4, 4]
    assert tokenizer.decode(ids[2:], after=ids[:2]) == "日x"
    assert tokenizer.text_offsets(ids[2:], after=ids[:2]) == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["sentencepiece", "Unigram"])
def test_a_text_behind_special_tokens_alone_begins_as_any_text(kind):
    tokenizer = tokenizer_of(kind)
    space = tokenizer._tokenizer.token_to_id("▁is")
    assert tokenizer.decode([space], after=[1]) == "is" and tokenizer.decode([space], after=[]) == "is"
    assert tokenizer.decode([space], after=[1, space]) == " is"
    assert tokenizer.decode([space], after=[1], skip_special_tokens=False) == " is"


# Cost.


class Counting:
    """Counts what a tokenizer's library is asked to decode."""

    def __init__(self, tokenizer):
        self.lengths = []
        real = tokenizer.decode_once
        tokenizer.decode_once = lambda ids, **options: self.lengths.append(len(ids)) or real(ids, **options)


@pytest.mark.parametrize("num", [10, 10_000])
def test_a_long_prompt_costs_what_its_last_tokens_cost(num, monkeypatch):
    tokenizer = wrapped(merged(["日本語 naïve"]))
    prompt = tokenizer.encode("日本語 naïve") * num
    looked_up = []
    table = tokenizer._tables[True]
    monkeypatch.setattr(
        type(table), "__getitem__", lambda self, idx: looked_up.append(idx) or self.piece(idx, first=False)
    )
    tokenizer.detokenizer(after=prompt)
    assert 0 < len(looked_up) < 12


@pytest.mark.parametrize("kind", ["sentencepiece by a regular expression", "BPE with ends of words"])
def test_a_decoder_without_a_rule_decodes_windows(kind):
    tokenizer = wrapped(KINDS[kind]())
    counting = Counting(tokenizer)
    detokenizer = tokenizer.detokenizer(after=[5] * 10_000)
    for token_id in [5, 6, 7] * 300:
        detokenizer.push(token_id)
    assert max(counting.lengths) <= 2 * MAX_PENDING and len(counting.lengths) < 3000
