"""The pieces of a report's page: one HTML file without scripts, with its pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from bench.report.style import STYLE
from bench.report.svg import Picture

NARROW, WIDE = 368, 1150  # pixels that a table has on a phone, and on a large screen
CHARACTER, PADDING, TEXT = 7.3, 8, 128  # pixels of a table's cells; text wraps down to a width


class Png(NamedTuple):
    """A picture that was drawn elsewhere: a PNG file."""

    file: str
    data: bytes
    caption: str
    rank: int = 9

    def html(self) -> str:
        """The picture inside a page."""
        data, text = base64.b64encode(self.data).decode(), escape(self.caption)
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>"
        )


class Noted(NamedTuple):
    """A cell with a note below it."""

    value: str
    note: str


class Number(NamedTuple):
    """A figure to be seen from afar, and what it has to be compared with."""

    label: str
    value: str
    beside: Sequence[str]  # a line each


class Section(NamedTuple):
    """A part of the page; text and pictures in order."""

    title: str
    anchor: str
    content: list[str | Picture | Png]

    @property
    def pictures(self) -> list[Picture | Png]:
        """The section's pictures, in order."""
        return [item for item in self.content if not isinstance(item, str)]

    def html(self) -> str:
        """The section as HTML."""
        parts = (item if isinstance(item, str) else item.html() for item in self.content)
        return "\n".join((heading(self.title, 2, self.anchor), *parts))


def page(title: str, body: Iterable[str]) -> str:
    """The whole file, as HTML."""
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>",
            *body,
            "</body>\n</html>\n",
        )
    )


def escape(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def heading(text: str, level: int = 2, anchor: str = "") -> str:
    """A heading, which links may lead to."""
    attribute = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h{level}{attribute}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: Literal["", "label", "soft"] = "") -> str:
    """A paragraph; a `label` stands out, a `soft` one steps back."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"


def numbers(shown: Iterable[Number]) -> str:
    """Large figures side by side, where there is room."""
    cards = (f"<div>{escape(n.label)}<b>{escape(n.value)}</b>{_lines(n.beside)}</div>" for n in shown)
    return f'<div class="numbers">{"".join(cards)}</div>'


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"<small>{escape(line)}</small>" for line in lines)


def beside(parts: Iterable[str]) -> str:
    """Parts beside each other, where there is room."""
    return f'<div class="beside">{"".join(parts)}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls where it is wider than the screen; the first column is a heading, and columns of
    text are ranged left."""
    kept = [list(row) for row in rows]
    text = [any(_is_text(row[index]) for row in kept) for index in range(len(header))]
    head = "".join(
        f'<th scope="col"{_class(left)}>{_whole(cell)}</th>' for cell, left in zip(header, text, strict=True)
    )
    body = "\n".join(f"<tr>{_cells(row, text)}</tr>" for row in kept)
    layout = _layout(header, kept, text)
    content = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table{layout}>{content}</table></div>'


def _cells(row: Sequence[Any], text: Sequence[bool]) -> str:
    head, note = row[0] if isinstance(row[0], Noted) else (row[0], "")
    small = f"<small>{escape(note)}</small>" if note else ""
    first = f'<th scope="row">{escape(head)}{small}</th>'
    others = zip(row[1:], text[1:], strict=True)
    return first + "".join(f"<td{_class(left)}>{escape(number(value))}</td>" for value, left in others)


def _layout(header: Sequence[str], rows: Sequence[Sequence[Any]], text: Sequence[bool]) -> str:
    """Of a table with notes, or too wide for a phone: there each row's first cell gets a line of its own; of
    one that is too wide for any screen, everywhere."""
    wrapped = [is_text and index > 0 for index, is_text in enumerate(text)]
    cells = [[_cell_width(cell) for cell in column] for column in zip(*rows, strict=True)]
    widths = [
        TEXT if wraps else PADDING + CHARACTER * max(_least(head), *column)
        for head, column, wraps in zip(header, cells, wrapped, strict=False)
    ]
    noted = any(isinstance(row[0], Noted) for row in rows)
    if not noted and sum(widths) <= NARROW:
        return ""
    kind = "stacked always" if sum(widths) > WIDE else "stacked"
    return f' class="{kind}" style="--columns:{min(len(header) - 1, 4)}"'


def _cell_width(value: Any) -> int:
    """Characters of a cell: figures do not wrap, names of arms wrap at hyphens."""
    text = number(value.value if isinstance(value, Noted) else value)
    return len(text) if text[:1].isdigit() else _least(text)


def _least(text: str) -> int:
    """Characters of the longest part that does not wrap."""
    return max(map(len, text.replace("-", "- ").split()), default=0)


def _whole(heading: str) -> str:
    """A heading that wraps between words alone, and not at the slash of a unit."""
    words = (f"<span>{escape(word)}</span>" if "/" in word else escape(word) for word in heading.split())
    return " ".join(words)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) > 12 and not value[0].isdigit()


def _class(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


def number(value: Any) -> str:
    """A figure for people: four digits that count, a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def records(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of dictionaries; columns in the order in which they first come, but for the reason."""
    names = dict.fromkeys(key for row in rows for key in row)
    columns = sorted(names, key=lambda name: name == "why")  # last
    return table(
        [column.replace("_", " ") for column in columns],
        [[_flat(row.get(column)) for column in columns] for row in rows],
    )


def _flat(value: Any) -> Any:
    return ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else value


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms and what they mean."""
    items = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs)
    return f"<dl>\n{items}\n</dl>"


def settings(pairs: Iterable[tuple[str, Any]]) -> str:
    """A table of names and values, as they are."""
    return table(("", "value"), ((name, "–" if value is None else str(value)) for name, value in pairs))


def preformatted(text: str) -> str:
    """Text whose spaces count."""
    return f"<pre>{escape(text)}</pre>"


def details(summary: str, content: str) -> str:
    """Content that is folded away at first."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def contents(sections: Iterable[tuple[str, str]]) -> str:
    """Links to sections, each an (anchor, title)."""
    items = "".join(f'<li><a href="#{escape(anchor)}">{escape(title)}</a></li>' for anchor, title in sections)
    return f"<nav><ul>{items}</ul></nav>"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested dictionaries, each as (dotted name, value)."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves += flatten(value, f"{name}.")
        else:
            leaves.append((name, _flat(value)))
    return leaves
