"""Pictures as SVG text: they stretch to the width they get, while their text keeps its size.

Horizontal places are shares of the width, vertical ones are pixels. What is drawn takes the colour of the
text around it, so that it follows a dark page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from bench.report.colours import INK

WIDTH = 830  # pixels of a picture in a file of its own; on a page it gets what there is
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
CHARACTER = 6.6  # pixels of width at 12 pixels of height, about
FILE_STYLE = (
    ":root { color-scheme: light dark; color: #1f2328; }"
    "@media (prefers-color-scheme: dark) { :root { color: #e6edf3; } }"
)


class Panel(NamedTuple):
    """A part of a picture: elements that fill the width between margins, and a height; both in pixels."""

    height: int
    elements: str
    left: int = 0
    right: int = 0

    def html(self) -> str:
        """The panel on a page."""
        style = f"width:calc(100% - {self.left + self.right}px);margin-left:{self.left}px"
        return element("svg", self.elements, width="100%", height=self.height, style=style)

    def placed(self, top: int) -> str:
        """The panel in a file."""
        width = WIDTH - self.left - self.right
        return element(
            "svg", self.elements, x=self.left, y=top, width=width, height=self.height, overflow="visible"
        )


class Key(NamedTuple):
    """An entry of a legend."""

    label: str
    colour: str
    opacity: float = 1.0
    outline: bool = False  # for what is empty


class Picture(NamedTuple):
    """Panels below or beside each other, with a legend. It is shown on a page, and is a file as well."""

    file: str
    panels: Sequence[Panel]
    caption: str
    alt: str  # what it shows, in figures
    keys: Sequence[Key] = ()
    rank: int = 9  # where not all may be files, the lowest are
    beside: bool = False  # panels stand beside each other where there is room

    @property
    def data(self) -> bytes:
        """The picture as a file."""
        return standalone(self).encode()

    def __repr__(self) -> str:
        return f"<Picture: {self.alt}>"

    def _repr_html_(self) -> str:
        """The picture in a notebook, which has no style for it: in the colours of its page."""
        style = f"width:100%;max-width:{WIDTH}px;height:auto"
        return f"{_drawn(self, '', style)}<div><small>{html.escape(self.caption)}</small></div>"

    def html(self) -> str:
        """The picture inside a page."""
        panels = "".join(f"<div>{panel.html()}</div>" for panel in self.panels)
        layout = "panels beside" if self.beside else "panels"
        body = f'<div class="{layout}" role="img" aria-label="{html.escape(self.alt)}">{panels}</div>'
        keys = "".join(f"<li>{_swatch(key)}{html.escape(key.label)}</li>" for key in self.keys)
        legend = f'<ul class="keys">{keys}</ul>' if keys else ""
        return f"<figure>{body}{legend}<figcaption>{html.escape(self.caption)}</figcaption></figure>"


def standalone(picture: Picture) -> str:
    """A picture as the text of a file."""
    return _drawn(picture, f"<style>{FILE_STYLE}</style>")


def _drawn(picture: Picture, head: str, style: str | None = None) -> str:
    """Panels below each other, then the legend."""
    parts, top = [], 0
    for panel in (*picture.panels, _legend(picture.keys)):
        parts.append(panel.placed(top))
        top += panel.height
    head += f"<title>{html.escape(picture.alt)}</title>"
    styled = {} if style is None else {"style": style}
    return element(
        "svg",
        head + "\n" + "\n".join(parts),
        xmlns="http://www.w3.org/2000/svg",
        width=WIDTH,
        height=top,
        viewBox=f"0 0 {WIDTH} {top}",
        role="img",
        font_family=FONT,
        **styled,
    )


def element(name: str, content: str = "", /, **attributes: object) -> str:
    """An element; an underscore in an attribute's name stands for a hyphen."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(words: str, x: str, y: float, size: int = 12, soft: bool = False, **attributes: object) -> str:
    """A line of text, at a share of the width."""
    if soft:
        attributes["fill_opacity"] = 0.72
    return element("text", html.escape(words), x=x, y=y, font_size=size, fill=INK, **attributes)


def share(value: float) -> str:
    """A share of the width, as SVG writes it."""
    return f"{100 * value:.2f}".rstrip("0").rstrip(".") + "%"


def _swatch(key: Key) -> str:
    """The small square before a legend's entry, on a page."""
    if key.outline:
        return '<i class="empty"></i>'
    return f'<i style="background:{key.colour};opacity:{key.opacity:g}"></i>'


def _legend(keys: Sequence[Key]) -> Panel:
    """The legend of a file: as many entries in a line as fit."""
    parts, left, top = [], 0.0, 10
    for key in keys:
        width = 20 + CHARACTER * len(key.label) + 18
        if left and left + width > WIDTH:
            left, top = 0.0, top + 20
        fill = {"fill": key.colour, "fill_opacity": key.opacity}
        if key.outline:
            fill = {"fill": "none", "stroke": INK, "stroke_opacity": 0.5}
        parts.append(element("rect", x=f"{left + 0.5:g}", y=top, width=12, height=12, rx=2, **fill))
        parts.append(text(key.label, f"{left + 18:g}", top + 10.5, soft=True))
        left += width
    return Panel(top + 16 if keys else 1, "".join(parts))
