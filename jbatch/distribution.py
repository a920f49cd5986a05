"""What is installed along with this package: a version, commands, and the packages beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jbatch.errors import JBatchError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DISTRIBUTION = "jbatch-llm"  # on PyPI, `jbatch` is another project
COMMANDS = "jbatch.commands"  # the group of entry points, each a typer.Typer
FOLDER = Path(__file__).resolve().parent.parent  # where the packages beside this one lie, too


def version() -> str:
    """The installed version; of a tree that is not installed, what its pyproject.toml says."""
    from importlib import metadata  # not at every import of jbatch

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return _project().get("version", "unknown")


def command_entry_points() -> list[EntryPoint]:
    """The commands that this package knows by entry point only."""
    from importlib import metadata

    try:
        return list(metadata.distribution(DISTRIBUTION).entry_points.select(group=COMMANDS))
    except metadata.PackageNotFoundError:
        named = _project().get("entry-points", {}).get(COMMANDS, {})
        return [metadata.EntryPoint(name, value, COMMANDS) for name, value in named.items()]


def load_command(entry_point: EntryPoint) -> Any:
    """What an entry point names. Raises JBatchError where that is not there, or shadowed."""
    check_not_shadowed(entry_point.module.partition(".")[0])
    try:
        return entry_point.load()
    except (ImportError, AttributeError) as error:
        raise JBatchError(f"{entry_point.name}: {entry_point.value} cannot be loaded: {error}") from error


def check_not_shadowed(*packages: str) -> None:
    """Raise JBatchError if Python finds something else under the name of a package that lies beside this one,
    such as a user's weights.py in the current directory. Nothing is imported: that would run the file."""
    for name in packages:
        try:
            spec = importlib.util.find_spec(name)
        except ValueError:  # a module made by hand, as tests do
            continue
        if spec is None or not spec.has_location or spec.origin is None:
            continue  # not there: an error of its own
        if Path(spec.origin).resolve().parent.parent != FOLDER:
            raise JBatchError(
                f"{spec.origin} hides the package {name!r} that jbatch needs: rename it, or keep it elsewhere"
            )


def install_hint(*extras: str) -> str:
    """How to install what is optional: with one of these extras."""
    named = " or ".join(f"'.[{extra}]'" for extra in extras)
    return f"pip install {named} in a clone of jbatch"


def _project() -> dict[str, Any]:
    """The table of this project in a clone's pyproject.toml; empty elsewhere."""
    import tomllib

    try:
        project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return {}
    return project if project.get("name") == DISTRIBUTION else {}
