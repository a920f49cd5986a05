"""Panels with two axes: lines, stairs, areas and points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from bench.report.colours import INK
from bench.report.svg import Panel, element, share, text

UNITS = 1000  # of the coordinates inside a plot, in both directions
LEFT, RIGHT, ABOVE, BELOW = 42, 12, 40, 40  # pixels around a plot


class Axis(NamedTuple):
    """What lies along one side of a plot."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, values: Iterable[float]) -> np.ndarray:
        """Where values lie between the ends: 0 to 1."""
        kept, low, high = np.asarray(list(values), float), self.low, self.high
        if self.logarithmic:
            kept, low, high = np.log(np.maximum(kept, low)), math.log(low), math.log(high)
        return (kept - low) / (high - low)


def linear(label: str, high: float, low: float = 0.0, ticks: int = 4) -> Axis:
    """An axis with about so many round ticks."""
    high = high if high > low else low + 1
    raw = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= raw * 0.999)
    first = math.ceil(low / step)
    marks = tuple(step * index for index in range(first, math.floor(high / step * 1.0001) + 1))
    return Axis(label, low, high, marks)


def logarithmic(label: str, low: float, high: float) -> Axis:
    """An axis with ticks at 1, 2 and 5 of each power of ten, or at powers alone where that is too many."""
    high = high if high > 0 else 1.0
    low = low if low > 0 else high / 1e4  # what is less, and nothing at all, stands at the end
    high = max(high, 1.05 * low)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for units, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2)):
        marks = tuple(m for p in powers[::every] for u in units if low <= (m := u * 10.0**p) <= high * 1.0001)
        if len(marks) <= 5:
            break
    return Axis(label, low, high, marks or (low, high), logarithmic=True)


def doubling(label: str, sizes: Sequence[float]) -> Axis:
    """A logarithmic axis whose ticks are the sizes that were measured."""
    low, high = min(sizes), max(sizes)
    every = max(1, -(-len(sizes) // 6))
    return Axis(label, low, max(high, 1.05 * low), tuple(sizes[::-1][::every][::-1]), logarithmic=True)


class Plot(NamedTuple):
    """The two axes that marks are drawn between."""

    x: Axis
    y: Axis

    def _places(self, xs: Iterable[float], ys: Iterable[float]) -> list[tuple[int, int]]:
        across, down = UNITS * self.x.place(xs), UNITS * (1 - self.y.place(ys))
        pairs = zip(across, down, strict=True)
        return [(round(x), round(y)) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]

    def line(self, xs: Iterable[float], ys: Iterable[float], colour: str, dashed: bool = False) -> str:
        """Straight lines from point to point."""
        return _path(_polyline(self._places(xs, ys)), colour, stroke_dasharray="5 4" if dashed else "none")

    def stairs(self, xs: Iterable[float], ys: Iterable[float], colour: str, width: float = 2) -> str:
        """Each value holds until the next one."""
        return _path(_stairs(self._places(xs, ys)), colour, width)

    def area(self, xs: Iterable[float], ys: Iterable[float], colour: str, opacity: float = 0.85) -> str:
        """What lies below stairs."""
        places = self._places(xs, ys)
        if not places:
            return ""
        path = f"{_stairs(places)}V{UNITS}H{places[0][0]}z"
        return element("path", d=path, fill=colour, fill_opacity=opacity)

    def points(
        self, xs: Iterable[float], ys: Iterable[float], colour: str, width: float, opacity: float
    ) -> str:
        """Dots; those that fall on one place are one."""
        path = "".join(f"M{x} {y}h0" for x, y in dict.fromkeys(self._places(xs, ys)))
        return _path(path, colour, width, stroke_linecap="round", stroke_opacity=opacity)

    def panel(self, title: str, marks: Iterable[str], height: int = 180) -> Panel:
        """The plot with its title, its grid and its ticks, `height` pixels high between the axes."""
        grid, labels = [], []
        for tick, place in zip(self.y.ticks, self.y.place(self.y.ticks), strict=True):
            y = round(height * (1 - place), 1)
            grid.append(_rule(x1="0", x2="100%", y1=y, y2=y))
            labels.append(text(f"{tick:,g}", "-7", y + 4, soft=True, text_anchor="end"))
        for tick, place in zip(self.x.ticks, self.x.place(self.x.ticks), strict=True):
            grid.append(_rule(x1=share(place), x2=share(place), y1=0, y2=height))
            labels.append(text(f"{tick:,g}", share(place), height + 16, soft=True, text_anchor="middle"))
        labels.append(text(self.x.label, "50%", height + 33, soft=True, text_anchor="middle"))
        data = element(
            "svg",
            "".join(marks),
            width="100%",
            height=height,
            viewBox=f"0 0 {UNITS} {UNITS}",
            preserveAspectRatio="none",
            overflow="visible",
        )
        head = text(title, f"-{LEFT}", 14, 13, font_weight=600)
        head += text(self.y.label, f"-{LEFT}", 31, soft=True)
        inner = element(
            "svg", "".join((*grid, data, *labels)), y=ABOVE, width="100%", height=height, overflow="visible"
        )
        return Panel(ABOVE + height + BELOW, head + inner, LEFT, RIGHT)


def _rule(**places: object) -> str:
    return element("line", stroke=INK, stroke_opacity=0.14, **places)


def _path(path: str, colour: str, width: float = 2, **attributes: object) -> str:
    """A line whose width does not stretch."""
    return element(
        "path", d=path, fill="none", stroke=colour, stroke_width=width,
        stroke_linejoin="round", vector_effect="non-scaling-stroke", **attributes,
    ) if path else ""  # fmt: skip


def _polyline(places: Sequence[tuple[int, int]]) -> str:
    kept = list(dict.fromkeys(places))
    return "M" + "L".join(f"{x} {y}" for x, y in kept) if kept else ""


def _stairs(places: Sequence[tuple[int, int]]) -> str:
    if not places:
        return ""
    (x, y), path = places[0], [f"M{places[0][0]} {places[0][1]}"]
    for new_x, new_y in places[1:]:
        if new_y == y:
            continue
        path.append(f"H{new_x}V{new_y}" if new_x != x else f"V{new_y}")
        x, y = new_x, new_y
    return "".join(path) + f"H{places[-1][0]}"
