"""The package offers to type checkers what it offers at run time. tests/typed has a user's mistakes."""

import ast
from pathlib import Path

import pytest

import jbatch


def test_every_name_is_there_for_type_checkers_too():
    tree = ast.parse(Path(jbatch.__file__).read_text())
    imported = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported >= set(jbatch.__all__) == set(jbatch._EXPORTS)
    assert all(getattr(jbatch, name).__name__ == name for name in jbatch.__all__)


def test_completion_sees_what_was_not_used_yet():
    assert set(dir(jbatch)) == {*jbatch.__all__, "__version__"}


@pytest.mark.parametrize(
    "name, hint",
    [("LLm", "did you mean 'LLM'"), ("SamplingParam", "'SamplingParams'"), ("Nothing", "it has LLM, ")],
)
def test_a_name_that_is_none(name, hint):
    with pytest.raises(AttributeError, match=f"no attribute {name!r}; .*{hint}"):
        getattr(jbatch, name)
