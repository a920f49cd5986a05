"""Where the latency of each arm goes: tables, and bars of the means."""

from __future__ import annotations

from collections.abc import Sequence

from bench.measure.measures import PARTS
from bench.report import bars, page
from bench.report.arm import Arm
from bench.report.bars import Bar
from bench.report.colours import BLUE, GREY, ORANGE, SKY
from bench.report.svg import Key, Picture

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


def tables(arms: Sequence[Arm]) -> str:
    """Tables that say it in figures: the mean, the median and the 99th percentile."""
    shown = [
        page.table(
            (f"{name}, ms", *PARTS),
            [(arm.name, *(arm.figures[f"{name}_{part}_ms"] for part in PARTS)) for arm in known(arms)],
        )
        for name in SHOWN
    ]
    return page.beside(shown)


def draw(arms: Sequence[Arm], file: str) -> Picture:
    """Bars of the mean latency, each divided by where it goes."""
    drawn = []
    for arm in arms:
        parts = [(arm.figures[f"mean_{part}_ms"], COLOURS[part]) for part in PARTS]
        total = sum(length for length, _ in parts)
        drawn.append(Bar(arm.name, f"{total:,.0f} ms" if total >= 10 else f"{total:.1f} ms", parts))
    said = "; ".join(
        f"{arm.name}: {bar.figure}, of it "
        + ", ".join(f"{part} {arm.figures[f'mean_{part}_ms']:.3g}" for part in PARTS)
        for arm, bar in zip(arms, drawn, strict=True)
    )
    keys = [Key(part, COLOURS[part]) for part in PARTS]
    return Picture(file, [bars.panel(drawn)], CAPTION, f"Mean E2EL. {said}.", keys, rank=4)
