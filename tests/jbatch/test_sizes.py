"""Sizes of memory: read from a text, and written."""

import pytest

from jbatch.errors import ConfigError
from jbatch.sizes import describe_bytes, parse_bytes


@pytest.mark.parametrize(
    "text, size",
    [
        ("80GiB", 80 * 2**30),
        ("141 GB", 141 * 10**9),
        ("1.5e9", 15 * 10**8),
        ("80g", 80 * 2**30),
        ("12MB", 12e6),
    ],
)
def test_sizes(text, size):
    assert parse_bytes("gpu_memory", text) == size


@pytest.mark.parametrize("text", ["80", " 80 ", "1.5", "141000"])
def test_a_small_number_lacks_its_unit(text):
    with pytest.raises(ConfigError, match=f"is in bytes: a unit is missing, as in {text.strip()}GiB$"):
        parse_bytes("gpu_memory", text)


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "0", "80XB", "8..0GB", "nan", "1e999", "9" * 5000])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match=r"^gpu_memory="):
        parse_bytes("gpu_memory", text)


@pytest.mark.parametrize(
    "size, text", [(0, "0 B"), (1023, "1023 B"), (2**30, "1.00 GiB"), (2**30 + 1, "1.01 GiB")]
)
def test_bytes_in_words(size, text):
    assert describe_bytes(size) == text
