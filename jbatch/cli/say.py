"""What a command says: a line on standard error."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import typer


def say(message: str) -> None:
    """Say something in one line, or on a terminal in as many as it needs."""
    line = f"jbatch: {' '.join(message.split())}"
    with suppress(OSError):  # a log on a full disk, or that nobody reads, is no reason to stop
        if sys.stderr is not None and sys.stderr.isatty():  # elsewhere a message stays one line
            from jbatch.cli.tables import in_lines

            line = in_lines(line, os.get_terminal_size(sys.stderr.fileno()).columns or len(line))
        typer.echo(line, err=True)
