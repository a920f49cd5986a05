"""Tables and sentences for people: as wide as the terminal, with nothing cut and no word broken."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from jbatch.cli.terms import MEANINGS, terms_in

WIDEST = 120  # columns; files and pipes have as many
INDENT, GAP = 2, 2
HEADING_LINES = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts under headings: names on the left, figures on the right, with their units in the heading.

    A column of figures that are all missing is left out. Headings are broken between words where that saves
    room. What is still too wide for the terminal comes in
    parts, one below the other, each with the names.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_names: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for columns, widths in self._parts(options.max_width):
            for line in self._heading(columns, widths):
                yield Text(line, "bold")
            yield Text(" " * INDENT + (" " * GAP).join("─" * width for width in widths))
            for row in self.rows:
                yield Text(self._line([row[column] for column in columns], columns, widths))
            yield Text("")

    def _parts(self, width: int) -> list[tuple[list[int], list[int]]]:
        """The columns of each part, and how wide they are."""
        names, columns = list(range(self.num_names)), self._columns()
        for num_lines in HEADING_LINES:
            widths = {column: self._width(column, num_lines) for column in columns}
            if _total(widths.values()) <= width:
                return [(columns, list(widths.values()))]
        parts = [names]
        for column in columns[len(names) :]:
            if len(parts[-1]) > len(names) and _total(widths[i] for i in (*parts[-1], column)) > width:
                parts.append(names)
            parts[-1] = [*parts[-1], column]
        return [(part, [widths[column] for column in part]) for part in parts]

    def _columns(self) -> list[int]:
        """Those that say something."""
        figures = range(self.num_names, len(self.headings))
        said = [column for column in figures if not self.rows or any(row[column] for row in self.rows)]
        return [*range(self.num_names), *said]

    def terms(self) -> list[str]:
        """The terms in what is shown."""
        names = (row[column] for row in self.rows for column in range(self.num_names))
        return terms_in([*(self.headings[column] for column in self._columns()), *names])

    def _width(self, column: int, num_lines: int) -> int:
        """The least width of a column whose heading has at most so many lines, or as few as can be."""
        heading = self.headings[column]
        width = max([1, *(cell_len(row[column]) for row in self.rows), *map(cell_len, heading.split())])
        while len(_broken(heading, width)) > num_lines and width < cell_len(heading):
            width += 1
        return width

    def _heading(self, columns: Sequence[int], widths: Sequence[int]) -> list[str]:
        broken = [
            _broken(self.headings[column], width) for column, width in zip(columns, widths, strict=True)
        ]
        depth = max(map(len, broken))
        lines = [[""] * (depth - len(heading)) + heading for heading in broken]
        return [self._line(cells, columns, widths) for cells in zip(*lines, strict=True)]

    def _line(self, cells: Sequence[str], columns: Sequence[int], widths: Sequence[int]) -> str:
        aligned = []
        for cell, column, width in zip(cells, columns, widths, strict=True):
            space = " " * (width - cell_len(cell))
            aligned.append(cell + space if column < self.num_names else space + cell)
        return (" " * INDENT + (" " * GAP).join(aligned)).rstrip()


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines of text, which go on below their last column where they are too long for the terminal."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.text.splitlines() or [""]:
            yield Text(line if options.no_wrap else in_lines(line, options.max_width))


def in_lines(line: str, width: int) -> str:
    """A line in lines of at most a width, broken between words."""
    own = line.lstrip()
    last_column = max((match.end() for match in re.finditer(r"\S {3,}", line)), default=0)
    indent = " " * (last_column or len(line) - len(own) + INDENT)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def meanings(of: Mapping[str, str]) -> Lines:
    """A line for each term: what it means."""
    return Lines("\n".join(f"  {term}: {meaning}" for term, meaning in of.items()))


class Page(Console):
    """What a command prints. On a terminal sentences are broken between words; elsewhere lines stay whole."""

    def __init__(self, width: int | None = None, file: IO[str] | None = None):
        is_terminal = width is not None or sys.stdout.isatty()
        columns = shutil.get_terminal_size(fallback=(WIDEST, 24)).columns
        super().__init__(
            file=file,
            width=width or min(columns, WIDEST),
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=not is_terminal,
        )
        self._explained: set[str] = set()

    def show(self, table: Table) -> None:
        """Print a table, and what those of its terms mean that this page has not explained yet."""
        self.print(table)
        new = [term for term in table.terms() if term not in self._explained]
        self._explained.update(new)
        if new:
            self.print(meanings({term: MEANINGS[term] for term in new}))
            self.print()


def echo(text: str) -> None:
    """Print lines of text."""
    Page().print(Lines(text))


def number(value: float) -> str:
    """A time or a rate with as many decimals as matter, so that columns stay narrow."""
    return f"{value:.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def _broken(heading: str, width: int) -> list[str]:
    """A heading in lines of at most a width, broken between words."""
    return textwrap.wrap(heading, width, break_long_words=False, break_on_hyphens=False) or [""]


def _total(widths: Iterable[int]) -> int:
    return INDENT - GAP + sum(width + GAP for width in widths)
