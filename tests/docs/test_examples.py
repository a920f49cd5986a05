"""README and docs/python.md: their programs and commands run, and print what is printed there."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.helpers.command import run

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RATE = re.compile(r"\d[\d.,/]*(?= ?(?:s|ms|(?:output )?tokens/s|requests/s)\b)")


def fences(document: str) -> list[tuple[str, str]]:
    """The fenced blocks of a document, in order: (language, text)."""
    return FENCE.findall((ROOT / document).read_text(encoding="utf-8"))


def without_rates(text: str) -> list[str]:
    """The lines of a text, without figures that are another's on another machine."""
    return [RATE.sub("N", line) for line in text.splitlines()]


def copy_demo_model(model_dir: Path) -> None:
    """The demo model with a context of 64 tokens, and so without programs for longer prompts."""
    shutil.copytree(ROOT / "weights/demo", model_dir)
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))


@pytest.mark.parametrize("document, count", [("README.md", 1), ("docs/python.md", 7)])
def test_programs_print_what_is_printed(document, count, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks, names, ran = fences(document), {}, 0
    for (language, code), (following, printed) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "python":
            continue
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            exec(compile(code, document, "exec"), names)
        if shown.getvalue():
            assert (following, printed) == ("", shown.getvalue())
            ran += 1
    assert ran == count


def test_commands_print_what_is_printed(tmp_path, monkeypatch, capsys):
    """The README's, in the order in which they stand there, with the file that stands there."""
    (lines,) = (text for language, text in fences("README.md") if language == "json")
    (tmp_path / "in.jsonl").write_text(lines)
    copy_demo_model(tmp_path / "weights/demo")
    monkeypatch.chdir(tmp_path)
    sessions = [text for _, text in fences("README.md") if text.startswith("$ ")]
    assert len(sessions) == 3
    for session in sessions:
        command, printed = session.split("\n", 1)
        ended = run(capsys, *shlex.split(command)[2:])
        shown = [line for line in without_rates(ended.out + ended.err) if "compiling" not in line]
        assert shown == without_rates(printed)
