"""Flags made from the fields of dataclasses."""

import dataclasses
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from jbatch.cli.options import ENGINE, SAMPLING, Flags, with_options
from jbatch.config import EngineConfig
from jbatch.errors import ConfigError
from jbatch.sampling_params import SamplingParams


@dataclasses.dataclass(frozen=True)
class Options:
    """One field of each type."""

    count: int = 3
    limit: int | None = None
    share: float = 0.5
    name: str = "x"
    stop: list[str] | None = None
    loud: bool = False
    warm: bool = True


HELP = {field.name: f"About {field.name}." for field in dataclasses.fields(Options)}


def parse(*args: str) -> dict:
    """What a command gets for some arguments."""
    app, got = typer.Typer(rich_markup_mode=None), {}

    @app.command()
    @with_options(Flags(Options, HELP))
    def command(options: dict, word: str = "none") -> None:
        """A command."""
        got.update(options, word=word)

    result = CliRunner().invoke(app, args)
    if isinstance(result.exception, ConfigError):
        raise result.exception
    got["exit_code"], got["output"] = result.exit_code, result.output
    return got


def test_only_what_is_given_is_passed():
    assert {"word": "none", "exit_code": 0}.items() == {
        k: v for k, v in parse().items() if k != "output"
    }.items()


def test_types():
    flags = "--count -7 --limit 12 --share 1e-3 --name a --stop b --stop c --loud --word w"
    expected = dict(count=-7, limit=12, share=1e-3, name="a", stop=["b", "c"], loud=True, word="w")
    assert expected.items() <= parse(*flags.split()).items()


def test_what_is_on_by_default_can_be_turned_off():
    assert parse("--no-warm")["warm"] is False and parse("--warm")["warm"] is True
    assert parse("--no-loud")["exit_code"] == 2


def test_a_zero_is_passed():
    got = parse("--count", "0", "--share", "0")
    assert (got["count"], got["share"]) == (0, 0.0)


@pytest.mark.parametrize(
    "flag, value", [("count", "1.5"), ("limit", ""), ("limit", "9" * 5000), ("share", "x")]
)
def test_no_number(flag, value):
    with pytest.raises(ConfigError, match=f"^{flag}='.*: must be an? (integer|number)$"):
        parse(f"--{flag}", value)


def test_help_shows_defaults():
    text = " ".join(parse("--help")["output"].split())
    for words in ("--count N About count. [default: 3]", "--limit N About limit.", "--share X About share."):
        assert words in text
    assert "--no-loud" not in text


@dataclasses.dataclass(frozen=True)
class Place:
    """Fields annotated as parameters of a command."""

    path: Annotated[Path, typer.Option("--path", "-o", help="Where to.")]
    names: Annotated[list[str] | None, typer.Option("--also", help="May be repeated.")] = None
    times: int = 2


@pytest.mark.parametrize(
    "flags, expected",
    [("-o x", Place(Path("x"))), ("--path y --also a --also b --times 3", Place(Path("y"), ["a", "b"], 3))],
)
def test_a_dataclass_of_annotated_fields_is_passed_whole(flags, expected):
    app, got = typer.Typer(), []

    @app.command()
    @with_options(Place, Flags(Options, HELP))
    def command(place: Place, options: dict) -> None:
        got.append((place, options))

    assert CliRunner().invoke(app, [*flags.split(), "--count", "4"]).exit_code == 0
    assert got == [(expected, {"count": 4})]
    assert CliRunner().invoke(app, []).exit_code == 2, "what has no default is required"


@pytest.mark.parametrize("cls, helps, panels", [ENGINE, SAMPLING])
def test_flags_are_fields(cls, helps, panels):
    assert helps.keys() <= {field.name for field in dataclasses.fields(cls)}
    assert all(text.endswith((".", "]")) for text in helps.values())
    assert sorted(helps) == sorted(name for names in panels.values() for name in names), "one panel for each"


def test_no_flag_is_in_both_groups():
    assert (ENGINE[0], SAMPLING[0]) == (EngineConfig, SamplingParams)
    assert not ENGINE[1].keys() & SAMPLING[1].keys()
