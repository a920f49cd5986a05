"""How objects show themselves: in a line at a prompt, and as a small table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

TEXT_CHARS, HTML_CHARS = 60, 400  # of a text, in a line and in a table
NUM_IDS = 6  # of token ids, where there is no text
CELL = 'style="text-align:left;white-space:pre-wrap"'


def changed_fields(record: Any) -> str:
    """The `__repr__` of a dataclass that has many options: those that are not as they are by default."""
    default = type(record)()
    fields = ((name, getattr(record, name)) for name in record.__dataclass_fields__)
    changed = (f"{name}={value!r}" for name, value in fields if value != getattr(default, name))
    return f"{type(record).__name__}({', '.join(changed)})"


def shorten(text: str, limit: int = TEXT_CHARS) -> str:
    """A text, without its middle where it is long."""
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end]} ... {text[-end:]}"


def ids(token_ids: Sequence[int]) -> str:
    """Token ids; of many, the first."""
    more = ", ..." if len(token_ids) > NUM_IDS else ""
    return f"[{', '.join(map(str, token_ids[:NUM_IDS]))}{more}]"


def count(number: int, what: str = "token") -> str:
    """A number of things."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """An HTML table, in the colours of the page that it is on. All is escaped, and what cannot be printed is
    written as in Python."""
    head = _row("th", header)
    body = "".join(_row("td", row) for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead>{head}</thead><tbody>{body}</tbody></table>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag} {CELL}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def escape(text: str) -> str:
    """A text as HTML, shortened."""
    printed = (
        char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in shorten(text, HTML_CHARS)
    )
    return html.escape("".join(printed))
