"""The picture of who computed where: slots downwards, steps to the right, a colour for each request."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from bench.report.arm import Arm
from bench.report.colours import INK
from bench.report.plot import linear
from bench.report.slot_cells import HELD, PADDING, PROMPT, SOMEONE, WAITING, Cell, cells_of, num_recorded
from bench.report.svg import Key, Panel, Picture, element, share, text

MAX_ARMS = 4
PREFERRED = ("static-padded", "static", "static-sorted", "continuous")

# Of requests: neighbours differ in hue and in lightness, and none is a grey.
COLOURS = ("#0072b2", "#f3c46b", "#00916b", "#e58ac2", "#56b4e9", "#c8590a", "#8fd0a8", "#7456b8")
SHADES = {
    PROMPT: ("#000", 0.5),
    HELD: (INK, 0.42),
    PADDING: (INK, 0.2),
    WAITING: (INK, 0.1),
    SOMEONE: ("#56b4e9", 0.45),
}
HEAD, FOOT, AXIS = 24, 14, 38  # pixels above and below an arm's slots, and of the axis
CAPTION = (
    "Who computed where. A row is a slot, a column a step, a colour a request (colours repeat). Each arm's "
    "rows end where the arm is done. An idle slot costs nothing; a grey one is computed for nothing."
)


Fill = tuple[str, float]  # a colour and its opacity


def choose(arms: Sequence[Arm]) -> list[Arm]:
    """The arms whose timelines tell most, in the order of the report."""
    many = [arm for arm in arms if arm.num_slots > 1]
    kept = sorted(many, key=lambda arm: arm.name not in PREFERRED)[:MAX_ARMS]
    return [arm for arm in arms if arm in kept]


def draw(arms: Sequence[Arm], file: str) -> Picture:
    """The picture: a panel for each arm, all on one axis, which is as long as the longest run."""
    longest = max(len(arm.steps["kind"]) for arm in arms)
    panels = [*(_panel(arm, longest) for arm in arms), _axis(longest)]
    keys = [
        Key("a colour: a request", COLOURS[0]),
        Key("dark: its prompt is read", "#003959"),
        Key("has ended, still computed", INK, SHADES[HELD][1]),
        Key("padding, computed too", INK, SHADES[PADDING][1]),
        Key("idle", INK, outline=True),
    ]
    shades = {cell.shade for arm in arms for row in cells_of(arm) for cell in row}
    if WAITING in shades:
        keys.append(Key("waits while others' prompts are read", INK, SHADES[WAITING][1]))
    if SOMEONE in shades:
        keys.append(Key("a request, not recorded which", *SHADES[SOMEONE]))
    alt = "Slots over steps. " + "; ".join(f"{arm.name}: {_said(arm)}" for arm in arms) + "."
    return Picture(file, panels, CAPTION, alt, keys, rank=2)


def _said(arm: Arm) -> str:
    """Where an arm is done, and how much of it was useful."""
    total, recorded = len(arm.steps["kind"]), num_recorded(arm)
    steps = f"done after {total:,} steps"
    if recorded < total:
        steps += f" (requests are known of the first {recorded:,})"
    use = arm.figures.get("slot_use")
    return steps + (f", {use:.0%} of computed slots useful" if use is not None else "")


def _panel(arm: Arm, longest: int) -> Panel:
    """An arm's name, and its slots, to where it is done."""
    cells = cells_of(arm)
    colour = _colours(arm)
    height = max(4, min(15, 160 // len(cells)))  # of a slot, with the hairline above it
    paths: dict[Fill, list[str]] = {}
    for slot, row in enumerate(cells):
        for first, length, fill in _runs(row, colour):
            place = f"M{first} {slot * height}h{length}v{height - 1}h-{length}z"
            paths.setdefault(fill, []).append(place)
    prompts = SHADES[PROMPT]
    drawn = "".join(_fill(fill, paths[fill]) for fill in sorted(paths, key=lambda fill: fill == prompts))
    below = height * len(cells)
    stretched = element(
        "svg",
        _fill(
            (INK, 0.05),
            [f"M0 {s * height}h{len(row)}v{height - 1}h-{len(row)}z" for s, row in enumerate(cells)],
        )
        + drawn,
        y=HEAD,
        width="100%",
        height=below,
        viewBox=f"0 0 {longest} {below}",
        preserveAspectRatio="none",
    )
    head = text(arm.name, "0", 16, 13, font_weight=600)
    said = f"done at {len(cells[0]):,} of {longest:,} steps"
    done = text(said, "100%", 16, text_anchor="end", soft=True)
    end = share(len(cells[0]) / longest)
    mark = element("line", x1=end, x2=end, y1=HEAD - 3, y2=HEAD + below + 2, stroke=INK, stroke_width=1.5)
    return Panel(HEAD + below + FOOT, head + done + stretched + mark)


def _colours(arm: Arm) -> dict[int, str]:
    """A colour for each request, in the order in which they got a slot: so neighbours differ."""
    order = dict.fromkeys(request for rows in arm.steps["rows"] for _, request, _ in rows)
    return {request: COLOURS[index % len(COLOURS)] for index, request in enumerate(order)}


def _runs(row: Sequence[Cell], colour: Mapping[int, str]) -> Iterator[tuple[int, int, Fill]]:
    """Neighbouring steps that look alike, each as (first step, how many, fill): colours, then what lies on
    them."""
    step = 0
    for request, cells in itertools.groupby(row, key=lambda cell: cell.request):
        length = len(list(cells))
        if request is not None:
            yield step, length, (colour[request], 1.0)
        step += length
    step = 0
    for shade, cells in itertools.groupby(row, key=lambda cell: cell.shade):
        length = len(list(cells))
        if shade is not None:
            yield step, length, SHADES[shade]
        step += length


def _fill(fill: Fill, places: Sequence[str]) -> str:
    colour, opacity = fill
    attributes = {} if opacity == 1 else {"fill_opacity": opacity}
    return element("path", d="".join(places), fill=colour, shape_rendering="crispEdges", **attributes)


def _axis(longest: int) -> Panel:
    """The steps, below all panels."""
    axis = linear("step", longest, ticks=6)
    parts = [element("line", x1="0", x2="100%", y1=0.5, y2=0.5, stroke=INK, stroke_opacity=0.3)]
    for tick in axis.ticks:
        place, anchor = tick / longest, "middle"
        if place < 0.02 or place > 0.97:
            anchor = "start" if place < 0.02 else "end"
        parts.append(
            element("line", x1=share(place), x2=share(place), y1=0, y2=5, stroke=INK, stroke_opacity=0.4)
        )
        parts.append(text(f"{tick:,g}", share(place), 18, soft=True, text_anchor=anchor))
    parts.append(text("steps of the engine", "50%", 32, soft=True, text_anchor="middle"))
    return Panel(AXIS, "".join(parts))
