"""Kernels are found by their folder and file, and a name in one list is all that a folder needs besides."""

from pathlib import Path

import pytest

import pallas_kernels
from pallas_kernels import implementations
from pallas_kernels.names import COMPILERS, NAMES


def test_the_names_are_those_of_the_folders():
    root = Path(pallas_kernels.__file__).parent
    assert sorted(COMPILERS) == sorted(file.parent.name for file in root.glob("*/decode.py"))
    assert (*COMPILERS, "xla") == NAMES


@pytest.mark.parametrize("name", COMPILERS)
def test_a_folder_holds_what_is_looked_for(name):
    shared = ("declines", "Tiles", "default_tiles")
    for kind, own in (("decode", ("paged_decode",)), ("prefill", ("paged_prefill", "tile_tokens"))):
        kernel = implementations.module(name, kind)
        assert all(callable(getattr(kernel, function)) for function in (*shared, *own))
