"""docs/house.md names what is there: every file, function and room. Nothing is imported to find out."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/house.md").read_text(encoding="utf-8")
PLACES = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", TEXT)))
FENCED = re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
(TREE,) = [block for block in FENCED if block.startswith("jbatch/")]


@functools.cache
def names_in(path: str) -> frozenset[str]:
    """What a file defines: functions, classes and constants, and what is inside its classes."""

    def walk(body: list[ast.stmt], prefix: str = ""):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))

    return frozenset(walk(ast.parse((ROOT / path).read_text(encoding="utf-8")).body))


def paths_in_tree() -> set[str]:
    """The folders and files of the tree, by their indentation. A line may hold several."""
    paths, above = set(), {}
    for line in TREE.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"(?:[\w.]+(?:/|\.py) ?)+", line.lstrip())
        assert names, f"no folder or file: {line}"
        for name in names[0].split():
            above[depth] = name
            paths.add("".join(above[level] for level in range(depth + 1)))
    return paths


@pytest.mark.parametrize("path, name", PLACES, ids=lambda part: part)
def test_every_function_is_there(path, name):
    assert name in names_in(path)


def test_functions_are_found_in_the_text():
    assert len(PLACES) > 50


@pytest.mark.parametrize("document", ["docs/house.md", "docs/development.md"])
def test_every_file_and_folder_is_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"`((?:jbatch|pallas_kernels|weights|bench|tools|tests|docs)/[\w./]*)`", text)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_tree_has_nothing_else():
    assert [path for path in paths_in_tree() if not (ROOT / path).exists()] == []


def test_the_tree_has_every_room():
    packages = ("jbatch", "pallas_kernels", "weights", "bench", "tools")
    rooms = {file.parent for package in packages for file in (ROOT / package).rglob("__init__.py")}
    rooms |= {file.parent for folder in (ROOT / "tests").iterdir() for file in folder.glob("*.py")}
    folders = {f"{room.relative_to(ROOT)}/" for room in rooms}
    files = {f"jbatch/{file.name}" for file in (ROOT / "jbatch").glob("*.py")}
    assert (folders | files) - paths_in_tree() == set()
