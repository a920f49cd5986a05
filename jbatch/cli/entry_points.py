"""Commands that are found by entry point: `jbatch` runs them, and knows nothing else of them."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from jbatch.distribution import command_entry_points, load_command
from jbatch.errors import JBatchError
from jbatch.names_elsewhere import command_instead_of

PASSED_ON: Any = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


class CommandsAndEntryPoints(TyperGroup):
    """Commands of its own, and those of entry points, which are imported when one of them, or the list of
    all commands, is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        self._add_entry_points()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            self._add_entry_points()
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and (instead := command_instead_of(args[0])) is not None:
            ctx.fail(f"No such command {args[0]!r}: {instead}")
        return super().resolve_command(ctx, args)

    def _add_entry_points(self) -> None:
        for entry_point in command_entry_points():
            if entry_point.name not in self.commands:
                try:
                    app = load_command(entry_point)
                except JBatchError as error:  # the other commands can be listed and run
                    app = _refusing(error)
                self.add_command(typer.main.get_command(app), entry_point.name)


def _refusing(error: JBatchError) -> typer.Typer:
    """In the place of a command that cannot be loaded."""
    app = typer.Typer(add_completion=False)

    @app.command(context_settings=PASSED_ON, short_help=f"Cannot be used here: {error}")
    def refuse() -> None:
        raise error

    return app
