"""The programs in examples/ print what examples/README.md says, in forty lines or so."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "examples/README.md").read_text(encoding="utf-8")
PRINTED = dict(re.findall(r"^## (\w+)\.py\n\n```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def test_every_program_is_there():
    programs = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert programs == set(re.findall(r"^\| \[(\w+)\.py\]", TEXT, re.MULTILINE)) == {*PRINTED, "rollout"}


@pytest.mark.parametrize("name", PRINTED)
def test_what_they_print(name, capsys):
    importlib.import_module(f"examples.{name}").main()
    assert capsys.readouterr().out == PRINTED[name]
