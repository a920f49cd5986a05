"""Where the latency of each arm goes: a table, and bars of the means."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from bench.measure.measures import PARTS
from bench.report import page
from bench.report.figures import BLUE, GREY, ORANGE, SKY, Arm, new_figure, styled
from bench.report.page import Picture

CAPTION = "Mean latency from arrival to the last token, and where it goes."
TEXT = (
    "E2EL = fill (waiting for a batch to be full: static-full alone) + queue (until the first chunk is "
    "planned) + prefill (until the first token) + decode (until the last). Means add up, percentiles do not."
)
SHOWN = ("mean", "p50", "p99")
COLOURS = dict(zip(PARTS, (GREY, ORANGE, SKY, BLUE), strict=True))


def known(arms: Sequence[Arm]) -> list[Arm]:
    """The arms of which it is known where their latency goes."""
    return [arm for arm in arms if arm.figures.get("mean_decode_ms") is not None]


def table(arms: Sequence[Arm]) -> list[str | Picture]:
    """The parts of a page that say it in figures; nothing where it is known of no arm."""
    header = ("arm", *(f"{part} {name}, ms" for part in PARTS for name in SHOWN))
    rows = [
        (arm.name, *(arm.figures[f"{name}_{part}_ms"] for part in PARTS for name in SHOWN))
        for arm in known(arms)
    ]
    if not rows:
        return []
    return [page.heading("Where the latency goes", 3), page.paragraph(TEXT), page.table(header, rows)]


@styled
def draw(arms: Sequence[Arm]) -> Figure:
    """Bars of the mean latency, each divided by where it goes."""
    figure, (axis,) = new_figure(1.4 + 0.42 * len(arms))
    most = max(sum(arm.figures[f"mean_{part}_ms"] for part in PARTS) for arm in arms)
    for place, arm in enumerate(reversed(arms)):
        left = 0.0
        for part in PARTS:
            width, label = arm.figures[f"mean_{part}_ms"], None if place else part
            axis.barh(place, width, left=left, color=COLOURS[part], height=0.62, label=label)
            left += width
        total = f"{left:,.0f} ms" if left >= 10 else f"{left:.1f} ms"
        axis.annotate(total, (left, place), (7, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(arms)), [arm.name for arm in reversed(arms)])
    axis.set_xlim(0, 1.15 * most or 1)
    axis.grid(axis="y", visible=False)
    axis.set_axisbelow(True)
    axis.set_xlabel("mean E2EL, ms")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure
