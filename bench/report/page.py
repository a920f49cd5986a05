"""The pieces of a report's page: one HTML file without scripts, images inside, for any screen."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --soft: #666; --line: #d0d0d0;
  --card: #f5f5f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --soft: #a0a0a0; --line: #444; --card: #22252a; }
}
body { margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.5rem; line-height: 1.3; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .25rem; } p, figcaption, dd { max-width: 45rem; }
figure { margin: 1.5rem 0; } figcaption { color: var(--soft); font-size: .9rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
.label { border-left: 4px solid #e69f00; background: var(--card); padding: .5rem .75rem; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: right; white-space: nowrap; }
thead th { vertical-align: bottom; } tbody th, td { vertical-align: top; } th { font-weight: 600; }
tbody th, th:first-child, .text { text-align: left; }
td.text { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--card); padding: .75rem; font-size: .8rem; border-radius: 6px; }
details { margin: .75rem 0; } summary { cursor: pointer; } nav ul { padding-left: 1.2rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1.2rem; color: var(--soft); }
""".strip()


class Picture(NamedTuple):
    """A PNG of the page, which is also a file."""

    file: str
    png: bytes
    caption: str
    rank: int = 9  # where not all may be files, the lowest are


class Section(NamedTuple):
    """A part of the page; text and pictures in order."""

    title: str
    anchor: str
    content: list[str | Picture]

    @property
    def pictures(self) -> list[Picture]:
        """The section's pictures, in order."""
        return [item for item in self.content if isinstance(item, Picture)]

    def html(self) -> str:
        """The section as HTML."""
        parts = (figure(item) if isinstance(item, Picture) else item for item in self.content)
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


def paragraph(text: str, label: bool = False) -> str:
    """A paragraph; as a `label`, one that stands out."""
    attribute = ' class="label"' if label else ""
    return f"<p{attribute}>{escape(text)}</p>"


def figure(picture: Picture) -> str:
    """A picture inside the page, with its caption."""
    data = base64.b64encode(picture.png).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(picture.caption)}">'
    return f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls where it is wider than the screen; the first column is a heading, and columns of
    text are ranged left."""
    kept = [list(row) for row in rows]
    text = [any(_is_text(row[index]) for row in kept) for index in range(len(header))]
    head = "".join(
        f'<th scope="col"{_class(left)}>{escape(cell)}</th>' for cell, left in zip(header, text, strict=True)
    )
    body = "\n".join(f"<tr>{_cells(row, text)}</tr>" for row in kept)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _cells(row: Sequence[Any], text: Sequence[bool]) -> str:
    first = f'<th scope="row">{escape(row[0])}</th>'
    others = zip(row[1:], text[1:], strict=True)
    return first + "".join(f"<td{_class(left)}>{escape(number(value))}</td>" for value, left in others)


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
