"""Help of every command, found by walking: it fits 80 columns, with choices, and options in groups."""

import pytest
import typer
from typer.core import TyperGroup

from bench.compare.arms import ARMS as COMPARED
from bench.compare.arms import GROUPS
from bench.ladder.arms import ARMS
from bench.options import ARM_NAMES, COMPARED_NAMES, DATASET_NAMES, HARDWARE_NAMES
from bench.simulate.hardware import HARDWARE
from bench.workloads.lengths import NAMES
from jbatch.cli import main as cli

FREE_TEXT = {"--prompt", "--stop"}
MANY = 8  # options of a command that need no groups


def commands(command, context=None, path=()):
    """Every command below one, with its path."""
    context = typer.Context(command, info_name=path[-1] if path else "jbatch", parent=context)
    if isinstance(command, TyperGroup):
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), context, (*path, name))
    else:
        yield path, command, context


COMMANDS = {" ".join(path): found for path, *found in commands(typer.main.get_command(cli.app))}


def test_commands_are_found():
    names = {"generate", "plan", "demo", "tune", "simulate", "replay", "predictor train", "bench policies"}
    assert names | {"bench compare", "bench report"} <= COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command, context = COMMANDS[name]
    lines = command.get_help(context).splitlines()
    assert max(map(len, lines)) <= 80 and "\n\n\n" not in "\n".join(lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_say_what_they_take(name):
    """A file, a number or one of some names: text alone says nothing."""
    command, context = COMMANDS[name]
    for param in command.params:
        if param.param_type_name == "option" and not param.is_flag:
            shown = param.display_type_rich(context)
            assert shown.lower() not in ("text", "<text>") or param.opts[0] in FREE_TEXT, param.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_many_options_are_in_groups(name):
    command, context = COMMANDS[name]
    options = [param for param in command.params if param.param_type_name == "option"]
    if len(options) > MANY:
        assert all(param.rich_help_panel for param in options), "one is in none"
        panels = list(dict.fromkeys(param.rich_help_panel for param in options))
        text = command.get_help(context)
        places = [text.index(f"\n{panel}:\n") for panel in panels]
        assert len(panels) > 2 and places == sorted(places)


def test_names_in_help_are_those_there_are():
    """They are written down again, so that help imports nothing heavy."""
    assert (tuple(ARMS), NAMES, tuple(HARDWARE)) == (ARM_NAMES, DATASET_NAMES, HARDWARE_NAMES)
    assert (*COMPARED, *GROUPS) == COMPARED_NAMES


def test_a_choice_is_shown_and_another_is_refused_in_one_line(capsys):
    command, context = COMMANDS["generate"]
    assert "--policy [fcfs|sjf|ljf|priority|deadline|fair|adaptive]" in command.get_help(context)
    assert cli._run(["plan", "llama3-8b", "--policy", "fifo"]) == cli.REFUSED
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "policy='fifo': must be one of fcfs, sjf, ljf" in said
