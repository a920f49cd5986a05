"""The package offers to type checkers what it offers at run time. tests/typed has a user's mistakes."""

import ast
from pathlib import Path

import jbatch


def test_every_name_is_there_for_type_checkers_too():
    tree = ast.parse(Path(jbatch.__file__).read_text())
    imported = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported >= set(jbatch.__all__) == set(jbatch._EXPORTS)
    assert all(getattr(jbatch, name).__name__ == name for name in jbatch.__all__)
