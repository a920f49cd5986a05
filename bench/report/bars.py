"""Bars from left to right: a line with name and figure, and the bar below it, so that they fit any screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.report.colours import INK
from bench.report.svg import Panel, element, share, text

LINE, BAR, GAP = 19, 13, 12  # pixels: the text above a bar, the bar, and the room below it


class Bar(NamedTuple):
    """One bar: parts that follow each other, each a (length, colour), and what is known of its spread."""

    name: str
    figure: str  # as it is written beside the name
    parts: Sequence[tuple[float, str]]
    dots: Sequence[float] = ()  # single measurements


def panel(bars: Sequence[Bar], high: float | None = None) -> Panel:
    """All bars on one scale, which ends at `high`, or at the longest."""
    longest = max((max((sum(length for length, _ in bar.parts), *bar.dots)) for bar in bars), default=0)
    scale = 1.01 * (high or longest or 1)
    rows = [_row(bar, scale, index * (LINE + BAR + GAP)) for index, bar in enumerate(bars)]
    return Panel(len(bars) * (LINE + BAR + GAP), "".join(rows))


def _row(bar: Bar, scale: float, top: int) -> str:
    y = top + LINE
    drawn = [
        text(bar.name, "0", top + 14, 13, font_weight=600),
        text(bar.figure, "100%", top + 14, soft=True, text_anchor="end"),
        element("rect", width="100%", y=y, height=BAR, rx=2, fill=INK, fill_opacity=0.06),
    ]
    left = 0.0
    for length, colour in bar.parts:
        place = {"x": share(left / scale), "width": share(length / scale)}
        drawn.append(element("rect", y=y, height=BAR, fill=colour, **place))
        left += length
    if len(bar.dots) > 1:
        drawn.append(_spread(min(bar.dots) / scale, max(bar.dots) / scale, y + BAR / 2))
    drawn += [
        element("circle", cx=share(dot / scale), cy=y + BAR / 2, r=3.2, fill="#fff", stroke="#222")
        for dot in bar.dots
    ]
    return "".join(drawn)


def _spread(least: float, most: float, y: float) -> str:
    """The line from the least to the most."""
    ends = {"x1": share(least), "x2": share(most), "y1": y, "y2": y}
    return element("line", stroke="#fff", stroke_width=3.4, **ends) + element("line", stroke="#222", **ends)
