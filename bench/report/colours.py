"""The colours of pictures: Okabe & Ito 2008, told apart by people who do not see all colours."""

from __future__ import annotations

from collections.abc import Sequence

BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#56b4e9",
    "#cc79a7",
    "#808080",
)
INK = "currentColor"  # of the text around: dark on a light page, light on a dark one
ARM_COLOURS = {
    "unbatched": GREY,
    "static": ORANGE,
    "static-full": GREEN,
    "static-padded": RED,
    "static-sorted": SKY,
    "static-sorted-predicted": PINK,
    "continuous": BLUE,
    "continuous-sorted": "#7c5cc4",
    "continuous-predicted": "#a6791f",
}
OTHER_COLOURS = (GREEN, INK, "#a6791f", "#7c5cc4", ORANGE, SKY, PINK)


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each arm, the same in every picture."""
    others = [name for name in names if name not in ARM_COLOURS]
    return {name: ARM_COLOURS.get(name) or OTHER_COLOURS[others.index(name) % 7] for name in names}
