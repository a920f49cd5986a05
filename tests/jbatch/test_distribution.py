"""The version, the commands and the packages that come with jbatch."""

import importlib.metadata
import sys
import tomllib

import pytest

from jbatch import distribution
from jbatch.distribution import (
    COMMANDS,
    FOLDER,
    check_not_shadowed,
    command_entry_points,
    install_hint,
    load_command,
    version,
)
from jbatch.errors import JBatchError

PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
RUN = "raise AssertionError('the file was run')"


class Installed:
    """What importlib.metadata finds of a distribution."""

    version = "7.8.9"
    entry_points = importlib.metadata.EntryPoints(
        [
            importlib.metadata.EntryPoint("hello", "greetings:app", COMMANDS),
            importlib.metadata.EntryPoint("jbatch", "jbatch.cli.main:main", "console_scripts"),
        ]
    )


@pytest.fixture
def installed(monkeypatch):
    found = {distribution.DISTRIBUTION: Installed}
    monkeypatch.setattr(importlib.metadata, "distribution", found.__getitem__)


@pytest.fixture
def not_installed(monkeypatch):
    def find(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", find)


def test_what_is_installed_counts(installed):
    assert version() == "7.8.9"
    assert [entry.name for entry in command_entry_points()] == ["hello"]


def test_a_tree_that_is_not_installed_has_its_pyproject(not_installed):
    assert version() == PROJECT["version"]
    assert {e.name: e.value for e in command_entry_points()} == PROJECT["entry-points"][COMMANDS]


@pytest.mark.parametrize("text", [None, "[tool.x]", '[project]\nname = "theirs"\nversion = "1"', "[", "\0"])
def test_neither_installed_nor_a_clone(text, not_installed, tmp_path, monkeypatch):
    """Copied into another project, say."""
    monkeypatch.setattr(distribution, "FOLDER", tmp_path)
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    assert version() == "unknown" and command_entry_points() == []


@pytest.mark.parametrize("file", ["weights.py", "weights/__init__.py"])
def test_a_file_of_this_name_is_named(file, tmp_path, monkeypatch):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(RUN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "weights", raising=False)
    with pytest.raises(JBatchError, match=f"^{path} hides the package 'weights' that jbatch needs"):
        check_not_shadowed("pallas_kernels", "weights")


def test_a_folder_without_init_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "weights", raising=False)
    check_not_shadowed("pallas_kernels", "weights", "of_no_such_name")


def test_one_that_was_imported_before_is_named(tmp_path, monkeypatch):
    (tmp_path / "weights.py").write_text("")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.delitem(sys.modules, "weights", raising=False)
        theirs = importlib.import_module("weights")
    monkeypatch.setitem(sys.modules, "weights", theirs)
    with pytest.raises(JBatchError, match=r"weights\.py hides"):
        check_not_shadowed("weights")


def test_a_command_that_is_not_there(monkeypatch):
    for value in ("jbatch.errors:nothing", "jbatch.nowhere:app"):
        entry_point = importlib.metadata.EntryPoint("hello", value, COMMANDS)
        with pytest.raises(JBatchError, match=f"^hello: {value} cannot be loaded: "):
            load_command(entry_point)


def test_hints_work_in_a_clone():
    assert install_hint("bench") == "pip install '.[bench]' in a clone of jbatch"
    assert install_hint("cuda12", "cuda13") == "pip install '.[cuda12]' or '.[cuda13]' in a clone of jbatch"
    assert {"bench", "chat", "cuda12", "cuda13"} <= PROJECT["optional-dependencies"].keys()
    assert PROJECT["name"] == distribution.DISTRIBUTION
