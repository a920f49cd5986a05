"""A tokenizer.json that would take this process along ends another one instead."""

import json
import subprocess
import sys

import pytest

from jbatch.errors import ConfigError, RequestError
from jbatch.text import tokenizer_probe
from jbatch.text.tokenizer import load_tokenizer
from tests.helpers import spin
from tests.helpers.file_fuzz import TOKENIZER, probe_in


def file_of(**parts) -> bytes:
    return json.dumps(TOKENIZER | parts).encode()


def growing(*factors: int) -> dict:
    """Every "a" becomes a thousand of them, again and again."""
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * n} for n in factors]
    return {"type": "Sequence", "normalizers": steps}


CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
EMPTY = {"type": "Replace", "pattern": {"String": ""}, "content": "aaaa"}


@pytest.mark.parametrize(
    "data, message",
    [
        (file_of(), None),
        (b"[]", "Cannot instantiate Tokenizer"),
        (file_of(normalizer=CHARSMAP), "Cannot parse precompiled_charsmap"),  # a panic while it is read
        (file_of(normalizer=EMPTY), "index out of bounds"),  # a panic at the first text
        (file_of(normalizer=growing(1000, 1000, 1000)), "it needs more than 107"),  # an abort
    ],
)
def test_why_a_file_is_refused(data, message):
    reason = tokenizer_probe.refusal(data)
    assert reason is None if message is None else message in reason and "\n" not in reason


def test_a_file_without_end(monkeypatch):
    """The limit is one of computing: a busy machine refuses no file."""
    monkeypatch.setattr(tokenizer_probe, "__file__", spin.__file__)
    begun = b"{}"  # never asked for before
    assert tokenizer_probe.refusal(begun) == "no end after 4 s of computing"


def test_a_model_directory_that_would_end_the_process(tmp_path):
    """In a process of its own, and in one line."""
    (tmp_path / "tokenizer.json").write_bytes(file_of(normalizer=growing(1000, 1000, 1000)))
    code = "import sys; from jbatch.text.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("jbatch.errors.ConfigError: tokenizer.json=")


def test_a_file_is_read_once_in_another_process(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_bytes(file_of(version="1.0", padding=None))
    assert load_tokenizer(tmp_path) is not None
    monkeypatch.setattr(tokenizer_probe.subprocess, "run", lambda *_, **__: pytest.fail("again"))
    assert load_tokenizer(tmp_path) is not None


class Passes:
    def refusal(self, data: bytes) -> None:
        return None


def test_a_panic_at_one_text_is_that_requests_error(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(file_of(normalizer=EMPTY))
    with probe_in(Passes()):
        tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(RequestError, match="cannot be encoded: index out of bounds"):
        tokenizer.encode("日本")


def test_errors_of_the_library_are_one_line(tmp_path):
    model = {"type": "WordPiece", "unk_token": "\n", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100, "vocab": {"a": 1}}  # fmt: skip
    (tmp_path / "tokenizer.json").write_bytes(file_of(model=model))
    with pytest.raises(RequestError, match="cannot be encoded") as refused:
        load_tokenizer(tmp_path).encode("zz")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("bos", ["\ud800", {"content": "\udfff"}, {"content": 1}, 7])
def test_special_tokens_that_are_no_text(bos, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(file_of())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos}))
    assert load_tokenizer(tmp_path, 3).bos_token_id == 3


def test_a_large_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jbatch.text.tokenizer.MAX_FILE_BYTES", 100)
    (tmp_path / "tokenizer.json").write_bytes(file_of())
    with pytest.raises(ConfigError, match="larger than 100 bytes"):
        load_tokenizer(tmp_path)
