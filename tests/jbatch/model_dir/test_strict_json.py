"""JSON files that are no objects, or that Python's own parser would let pass."""

import pytest

from jbatch.errors import ConfigError
from jbatch.model_dir.strict_json import read_object, read_optional


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"model_type": "llama", "model_type": "llama"}',
        b'{"rms_norm_eps": NaN}',
        b'{"rms_norm_eps": -Infinity}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b" " * (2**24 + 1),
    ],
)
def test_bad_files_are_config_errors(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"config\.json") as error:
        read_object(path)
    assert len(str(error.value)) < 1000


def test_a_pointer_of_git_lfs_says_so(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 654\n")
    with pytest.raises(ConfigError, match=r"a pointer of Git LFS in place of the file: run `git lfs pull`"):
        read_object(path)


def test_an_optional_file(tmp_path):
    path = tmp_path / "generation_config.json"
    assert read_optional(path) == {}
    path.write_text('{"top_k": 5}')
    assert read_optional(path) == {"top_k": 5}
