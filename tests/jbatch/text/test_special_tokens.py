"""BOS and EOS, by the files that name them: docs/tokenizers.md has the rule."""

import json
import warnings
from typing import Any, NamedTuple

import pytest
from tokenizers import processors

from jbatch.text.special_tokens import Ends, ends_of, load_special_tokens
from jbatch.text.tokenizer import load_tokenizer
from tests.helpers.tokenizer_kinds import KINDS, llama_3, sentencepiece, with_added_tokens
from tests.helpers.tokenizers import byte_level, save

BOS, EOS = 256, 257  # of `byte_level`
LLAMA = {"tokenizer_class": "LlamaTokenizerFast"}
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}


def template(single):
    return processors.TemplateProcessing(single, special_tokens=[("<s>", BOS), ("</s>", EOS)])


class Files(NamedTuple):
    """The files of a model, and what is right for them."""

    processor: Any = None  # of tokenizer.json
    config: dict = {}  # noqa: RUF012 - tokenizer_config.json
    mapped: dict | None = None  # special_tokens_map.json
    of_model: tuple[int | None, int | None] = (None, None)  # of config.json
    before: list = []  # noqa: RUF012 - what is added in front of a text
    after: list = []  # noqa: RUF012
    ids: tuple[int | None, int | None] = (BOS, EOS)
    texts: tuple[str | None, str | None] = ("<s>", "</s>")


FILES = {
    "Llama 2: template and flags": Files(
        template("<s> $A"), {**LLAMA, **NAMED, "add_bos_token": True}, before=[BOS]
    ),
    "Llama 3: template alone": Files(
        processors.Sequence([processors.ByteLevel(), template("<s> $A")]),
        {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED},
        before=[BOS],
    ),
    "DeepSeek: a flag and no template": Files(
        processors.ByteLevel(),
        {**LLAMA, **NAMED, "add_bos_token": True, "add_eos_token": False},
        before=[BOS],
    ),
    "Yi: a template that a flag takes back": Files(
        template("<s> $A"), {**LLAMA, **NAMED, "add_bos_token": False}
    ),
    "Qwen 2: no BOS, which is null": Files(
        processors.ByteLevel(),
        {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None, "eos_token": "</s>"},
        of_model=(BOS, EOS),
        ids=(None, EOS),
        texts=(None, "</s>"),
    ),
    "an early Llama: the class alone": Files(None, LLAMA, before=[BOS]),
    "an early Llama: empty names": Files(None, {**LLAMA, "bos_token": "", "eos_token": ""}, before=[BOS]),
    "names in special_tokens_map.json": Files(template("<s> $A"), {}, NAMED, before=[BOS]),
    "names that are written out there": Files(
        template("<s> $A"),
        {"bos_token": None},
        {name: {"content": text, "lstrip": False} for name, text in NAMED.items()},
        before=[BOS],
    ),
    "both files: tokenizer_config.json is right": Files(
        None, {"eos_token": "</s>", "add_eos_token": True}, {**NAMED, "eos_token": "<s>"}, after=[EOS]
    ),
    "BOS and EOS around each text": Files(template("<s> $A </s>"), NAMED, before=[BOS], after=[EOS]),
    "BOS and EOS, and flags against both": Files(
        template("<s> $A </s>"), {**NAMED, "add_bos_token": False, "add_eos_token": False}
    ),
    "null flags say nothing": Files(
        template("<s> $A"), {**NAMED, "add_bos_token": None, "add_eos_token": None}, before=[BOS]
    ),
    "RoBERTa's": Files(
        processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS)), NAMED, before=[BOS], after=[EOS]
    ),
    "config.json alone": Files(None, {"add_bos_token": True}, of_model=(BOS, EOS), before=[BOS]),
    "nothing names any": Files(None, {}, ids=(None, None), texts=(None, None)),
    "names that are no tokens": Files(
        None, {"bos_token": "[BOS]", "eos_token": 7}, ids=(None, None), texts=("[BOS]", None)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_begins_and_ends_a_text(name, tmp_path):
    files = FILES[name]
    library = byte_level()
    if files.processor is not None:
        library.post_processor = files.processor
    save(library, tmp_path, **files.config)
    if files.mapped is not None:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(files.mapped))
    tokenizer = load_tokenizer(tmp_path, *files.of_model)
    bare = tokenizer.encode("hi", add_special_tokens=False)
    assert len(bare) == 2 and tokenizer.encode("hi") == [*files.before, *bare, *files.after]
    assert tokenizer.encode("") == [*files.before, *files.after]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == files.ids
    assert tuple(tokenizer.special_tokens.get(name) for name in NAMED) == files.texts


@pytest.mark.parametrize("text", ["<s>hi", "<s><s>hi", "</s></s>hi", "<s>", "hi"])
@pytest.mark.parametrize("bos", [False, True])
def test_two_equal_special_tokens_stay_where_no_bos_is_added(text, bos, tmp_path):
    """A BOS that the text begins with is the one that would be added."""
    save(byte_level(bos), tmp_path, **NAMED)
    tokenizer = load_tokenizer(tmp_path)
    bare = tokenizer.encode(text, add_special_tokens=False)
    assert bare == byte_level().encode(text).ids
    added = [BOS] if bos and not text.startswith("<s>") else []
    assert tokenizer.encode(text) == added + bare


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_is_what_the_library_adds(kind):
    library = KINDS[kind]()
    before, after = ends_of(library)
    for text in ("is a", "a is"):
        bare, whole = (library.encode(text, add_special_tokens=add).ids for add in (False, True))
        assert whole == [*before, *bare, *after]


def test_a_template_that_does_more_is_left_to_the_library(tmp_path):
    library = byte_level()
    library.post_processor = template("$A <s> $A")
    assert ends_of(library) is None and ends_of(byte_level()) == Ends([], [])
    save(library, tmp_path, **NAMED, add_bos_token=False)
    assert load_tokenizer(tmp_path).encode("hi") == library.encode("hi").ids


def test_a_flag_for_a_token_that_no_file_names_is_said(tmp_path):
    save(byte_level(), tmp_path, add_bos_token=True)
    with pytest.warns(UserWarning, match="add_bos_token is true, and no file names that token"):
        tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer.encode("hi")) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tokenizer(tmp_path, BOS)


def test_a_token_that_is_named_is_special_though_the_vocabulary_lists_it_with_the_others(tmp_path):
    library = sentencepiece()
    save(library, tmp_path, bos_token="▁Paris")
    tokenizer = load_tokenizer(tmp_path)
    token_id = library.token_to_id("▁Paris")
    assert tokenizer.encode("x▁Paris", add_special_tokens=False)[-1] == token_id == tokenizer.bos_token_id
    assert tokenizer.decode([token_id, 3 + 0x61]) == "a"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["", "not JSON", "[" * 100_000, "[1]", "\xff", '{"bos_token": "\\ud800"}'])
def test_a_file_that_cannot_be_read_names_nothing(name, text, tmp_path):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert load_special_tokens(tmp_path).texts == {}


@pytest.mark.parametrize("make", [sentencepiece, llama_3, with_added_tokens])
def test_transformers_adds_the_same_where_its_versions_agree(make, tmp_path):
    transformers = pytest.importorskip("transformers")
    library = make()
    save(library, tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    names = (
        {"bos_token": "<s>", "eos_token": "</s>"} if make is not with_added_tokens else {"eos_token": "</s>"}
    )
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_token_id, ours.eos_token_id)
    for text in ("is a", " 日本 <s>", "</s>x"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text, add_special_tokens=False)
        if not text.startswith("<s>"):
            assert theirs.encode(text) == ours.encode(text)
