"""Commands by entry point, and files of the user's that have the names of our packages."""

import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer

from jbatch.cli import entry_points
from jbatch.distribution import COMMANDS
from tests.helpers.command import run

ROOT = Path(__file__).parents[3]


@pytest.fixture
def greetings(monkeypatch):
    """A command of one entry point, and an entry point of nothing."""
    app = typer.Typer(help="Greetings.", add_completion=False)

    @app.command()
    def morning(name: str) -> None:
        typer.echo(f"good morning, {name}")

    @app.command()
    def fail() -> None:
        raise OSError("no greeting")

    module = types.ModuleType("greetings")
    module.app = app
    monkeypatch.setitem(sys.modules, "greetings", module)
    found = [
        importlib.metadata.EntryPoint("greet", "greetings:app", COMMANDS),
        importlib.metadata.EntryPoint("gone", "jbatch.nowhere:app", COMMANDS),
        importlib.metadata.EntryPoint("doctor", "greetings:app", COMMANDS),
    ]
    monkeypatch.setattr(entry_points, "command_entry_points", lambda: found)


def test_they_are_listed_behind_ours(greetings, capsys):
    ended = run(capsys, "--help")
    commands = ended.out[ended.out.index("Commands:") :]
    assert ended.code == 0 and commands.index("  convert ") < commands.index("  greet     Greetings.")
    assert "  gone      Cannot be used here: gone: jbatch.nowhere:app" in commands
    assert "  doctor    Show versions" in commands, "no entry point takes the place of a command of ours"


@pytest.mark.parametrize(
    "args, code, out, err",
    [
        ("greet morning you", 0, "good morning, you\n", ""),
        ("greet fail", 2, "", "jbatch: no greeting\n"),
        ("greet", 2, "", "jbatch: Missing command. (see jbatch greet --help)\n"),
        ("greet x", 2, "", "jbatch: No such command 'x'. (see jbatch greet --help)\n"),
        ("gret", 2, "", "jbatch: No such command 'gret'. Did you mean 'greet'? (see jbatch --help)\n"),
    ],
)
def test_they_are_run(args, code, out, err, greetings, capsys):
    assert run(capsys, *args.split()) == (code, out, err)


@pytest.mark.parametrize("flags", [(), ("--help",), ("x", "--y", "z")])
def test_one_that_is_not_there_is_one_line(flags, greetings, capsys):
    ended = run(capsys, "gone", *flags)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("jbatch: gone: jbatch.nowhere:app cannot be loaded: ")


RUN_ALL = """
import sys
from jbatch.cli.main import main
for args in sys.argv[1:]:
    try:
        main(args.split())
    except SystemExit as ended:
        print(args, ended.code, flush=True)
"""
NEED_WEIGHTS = ("generate m -p x", "demo", "doctor m", "plan m", "convert m out")
NEED_BENCH = ("bench latency --help", "bench nothing")


@pytest.fixture
def folder(tmp_path) -> Path:
    """What a user may have beside the script."""
    for name in ("bench.py", "weights.py"):
        (tmp_path / name).write_text("print('this was run')")
    (tmp_path / "m").mkdir()
    return tmp_path


def start(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_what_needs_a_shadowed_package_is_one_line_that_names_the_file(folder):
    done = start(folder, "-c", RUN_ALL, *NEED_WEIGHTS, *NEED_BENCH)
    assert done.stdout.splitlines() == [f"{args} 2" for args in NEED_WEIGHTS + NEED_BENCH]
    files = ["weights"] * len(NEED_WEIGHTS) + ["bench"] * len(NEED_BENCH)
    for line, name in zip(done.stderr.splitlines(), files, strict=True):
        assert line.startswith(f"jbatch: {folder / name}.py hides the package '{name}' that jbatch needs")


def test_what_needs_none_works(folder):
    done = start(folder, "-m", "jbatch", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    assert "generate Complete" in shown and "bench Cannot be used here: " in shown
