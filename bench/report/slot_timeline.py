"""The picture of who computed where: slots downwards, steps to the right, a colour for each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.report.figures import Arm, new_figure, styled

MAX_STEPS, MAX_SLOTS = 300, 32  # more could not be told apart
MAX_ARMS = 4
PREFERRED = ("static-padded", "static", "static-sorted", "continuous")

# Of requests: neighbours differ in hue and in lightness, and none is a grey.
COLOURS = ("#0072b2", "#f3c46b", "#00795a", "#e58ac2", "#56b4e9", "#b44d00", "#8fd0a8", "#5b3fa0")
HELD, PADDING, IDLE = "#757575", "#cfcfcf", "#ffffff"
PREFILL_SHADE = 0.45  # of the request's colour
IS_HELD, IS_PROMPT = 1, 2  # states in a StepRow's rows


def choose(arms: Sequence[Arm]) -> list[Arm]:
    """The arms whose timelines tell most, in the order of the report."""
    many = [arm for arm in arms if arm.num_slots > 1]
    kept = sorted(many, key=lambda arm: arm.name not in PREFERRED)[:MAX_ARMS]
    return [arm for arm in arms if arm in kept]


@styled
def draw(arms: Sequence[Arm]) -> Figure:
    """Draw a panel for each arm, all on one scale."""
    heights = [0.75 + 0.085 * min(arm.num_slots, MAX_SLOTS) for arm in arms]
    figure, axes = new_figure(
        1.1 + sum(heights), rows=len(arms), sharex=True, gridspec_kw={"height_ratios": heights}
    )
    for axis, arm in zip(axes, arms, strict=True):
        pixels = image(arm)
        num_rows, num_steps = pixels.shape[:2]
        axis.imshow(
            pixels, aspect="auto", interpolation="nearest", extent=(0, num_steps, num_rows - 0.5, -0.5)
        )
        total = len(arm.steps["kind"])
        shown = f"first {num_steps:,} of {total:,} steps" if total > num_steps else f"{total:,} steps"
        use = arm.figures.get("slot_use")
        text = f", {use:.0%} of computed rows useful" if use is not None else ""
        axis.set_title(f"{arm.name}: {shown}{text}")
        axis.set_ylabel("slot")
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.grid(visible=False)
    axes[-1].set_xlabel("step")
    axes[-1].set_xlim(0, max(min(len(arm.steps["kind"]), MAX_STEPS) for arm in arms))
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def image(arm: Arm) -> np.ndarray:
    """Colours [slots, steps, 3]. A row that is in no step is idle. Of those, as many are padding as a decode
    step's bucket has slots too many: padding has no row of its own, so the topmost idle ones stand for it."""
    steps: dict[str, list[Any]] = {name: column[:MAX_STEPS] for name, column in arm.steps.items()}
    pixels = np.ones((min(arm.num_slots, MAX_SLOTS), len(steps["kind"]), 3))
    columns = zip(steps["kind"], steps["slots"], steps["slots_used"], steps["rows"], strict=True)
    for index, (kind, slots, used, rows) in enumerate(columns):
        present = {row: (request, state) for row, request, state in rows}
        padding = slots - used if kind == "decode" else 0
        for row in range(len(pixels)):
            if row in present:
                request, state = present[row]
                colour = HELD if state == IS_HELD else COLOURS[request % len(COLOURS)]
                shade = PREFILL_SHADE if kind == "prefill" or state == IS_PROMPT else 1.0
                pixels[row, index] = np.asarray(to_rgb(colour)) * shade
            elif padding:
                pixels[row, index] = to_rgb(PADDING)
                padding -= 1
    return pixels


def _legend() -> list[Patch]:
    first = COLOURS[0]
    dark = tuple(np.asarray(to_rgb(first)) * PREFILL_SHADE)
    return [
        Patch(color=first, label="decode (a colour: a request)"),
        Patch(color=dark, label="prefill (its colour, dark)"),
        Patch(color=HELD, label="ended, still computed"),
        Patch(color=PADDING, label="padding of the bucket"),
        Patch(facecolor=IDLE, edgecolor="black", linewidth=0.6, label="idle, or others prefill"),
    ]
