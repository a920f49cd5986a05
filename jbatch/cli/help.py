"""Help in plain text that fits 80 columns, with the options of a command in groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand

OTHERS = "Options"  # what is in no group


class GroupedCommand(TyperCommand):
    """A command whose help lists its options under their panels, in the order in which these come first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write all arguments and options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        params: list[Any] = self.get_params(ctx)
        for param in params:
            panel = "Arguments" if param.param_type_name == "argument" else param.rich_help_panel or OTHERS
            if (shown := param.get_help_record(ctx)) is not None:
                sections.setdefault(panel, []).append(shown)
        others = sections.pop(OTHERS, [])  # last: most of the time --help alone
        for name, records in (sections | {OTHERS: others}).items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def choices(names: Iterable[object], other: str = "") -> str:
    """What stands behind a flag that takes one of some names, or something else."""
    return f"[{'|'.join(map(str, (*names, *([other] if other else []))))}]"
