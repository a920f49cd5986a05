"""The pictures of a report on arms of a comparison; each is a matplotlib figure."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

P = ParamSpec("P")
R = TypeVar("R")
WIDTH = 7.2  # inches; text stays legible where a phone shows the picture at half its size
DPI = 150
MAX_POINTS = 1500
KINDS = ("decode", "mixed", "prefill")  # of steps

# Okabe & Ito 2008: told apart by people who do not see all colours.
BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#56b4e9",
    "#cc79a7",
    "#707070",
)
ARM_COLOURS = {
    "unbatched": GREY,
    "static": ORANGE,
    "static-full": GREEN,
    "static-padded": RED,
    "static-sorted": SKY,
    "static-sorted-predicted": PINK,
    "continuous": BLUE,
}
OTHER_COLOURS = (GREEN, "#000000", "#8c6d1f", "#5b3fa0", ORANGE, SKY, PINK)
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.facecolor": "white",
}


class Arm(NamedTuple):
    """What the pictures need of one arm; columns are lists of equal lengths, by field."""

    name: str
    figures: Mapping[str, Any]
    steps: Mapping[str, list[Any]]
    requests: Mapping[str, list[Any]]

    @property
    def num_slots(self) -> int:
        """Slots to draw: the rows of device state that were used, and no fewer than decoding buckets have."""
        rows = (row[0] + 1 for rows in self.steps.get("rows", ()) for row in rows)
        steps = zip(self.steps.get("kind", ()), self.steps.get("slots", ()), strict=True)
        return max([*rows, *(slots for kind, slots in steps if kind == "decode")], default=0)


def columns(rows: Sequence[Sequence[Any]], fields: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each field. Raises ValueError where a row has other fields."""
    if any(len(row) != len(fields) for row in rows):
        raise ValueError(f"a row does not have the {len(fields)} fields {', '.join(fields)}")
    return {name: [row[index] for row in rows] for index, name in enumerate(fields)}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each arm, the same in every picture."""
    others = [name for name in names if name not in ARM_COLOURS]
    return {name: ARM_COLOURS.get(name) or OTHER_COLOURS[others.index(name) % 7] for name in names}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in this module's style, which holds nowhere else."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return drawn


@styled
def to_png(figure: Figure) -> bytes:
    """A figure as a PNG file: the same bytes for the same figures, without date and version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(height: float, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many inches, and its panels, one below the other."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, 1, squeeze=False, **options)[:, 0]


def legend_columns(num_arms: int) -> int:
    """Of a legend above a figure: as many as fit."""
    return num_arms if num_arms <= 4 else 3


def logarithmic(axis: Any) -> None:
    """Give an x or y axis ticks at 1, 2, 5 of each power of ten, written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())


@styled
def throughput(arms: Sequence[Arm]) -> Figure:
    """Bars of output tokens per second, a dot for each repeat."""
    figure, (axis,) = new_figure(1.1 + 0.42 * len(arms))
    colour = colours([arm.name for arm in arms])
    most = max(max(arm.figures["repeats"] or [0], default=0) for arm in arms)
    for place, arm in enumerate(reversed(arms)):
        value, repeats = arm.figures["output_throughput"], arm.figures["repeats"]
        axis.barh(place, value, color=colour[arm.name], alpha=0.85, height=0.62)
        axis.plot(repeats, [place] * len(repeats), "o", color="white", markeredgecolor="black", markersize=4)
        text = f"median {value:,.0f}" if value >= 10 else f"median {value:.2f}"
        axis.annotate(text, (max(value, *repeats, 0), place), (7, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(arms)), [arm.name for arm in reversed(arms)])
    axis.set_xlim(0, 1.25 * most)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("output tokens/s (bar: the median repeat; dots: each repeat)")
    return figure


@styled
def latencies(arms: Sequence[Arm]) -> Figure:
    """Cumulative shares of the requests: time to the first token, per token, and to the end."""
    figure, axes = new_figure(8.2, rows=3)
    colour = colours([arm.name for arm in arms])
    titles = (
        ("TTFT: from arrival to the first token", "s"),
        ("TPOT: per token after the first", "ms"),
        ("E2EL: from arrival to the last token", "s"),
    )
    for axis, index, (title, unit) in zip(axes, range(3), titles, strict=True):
        for arm in arms:
            values = np.sort(request_latencies(arm)[index]) * (1e3 if unit == "ms" else 1)
            share = 100 * np.arange(len(values) + 1) / max(1, len(values))
            axis.step(
                [*values[:1], *values],
                share,
                where="post",
                color=colour[arm.name],
                linewidth=1.8,
                label=arm.name,
            )
        axis.set_title(title)
        axis.set_xscale("log")
        logarithmic(axis.xaxis)
        axis.set_ylim(0, 102)
        axis.set_xlabel(f"{unit}, logarithmic")
        axis.set_ylabel("requests, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(len(arms)), frameon=False)
    return figure


def request_latencies(arm: Arm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds of each request: TTFT, TPOT where it has more than one token, E2EL."""
    arrival, first, end, tokens = (
        np.asarray(arm.requests[name], float) for name in ("arrival", "first_token", "end", "output_len")
    )
    many = tokens > 1
    return first - arrival, (end - first)[many] / (tokens[many] - 1), end - arrival


@styled
def tokens_over_time(arms: Sequence[Arm]) -> Figure:
    """Output tokens so far: a straight line is a batch that stays full."""
    figure, (axis,) = new_figure(3.8)
    colour = colours([arm.name for arm in arms])
    for arm in arms:
        times, total = cumulative_tokens(arm)
        axis.plot(times, total, color=colour[arm.name], linewidth=1.8, label=arm.name)
        axis.plot(times[-1:], total[-1:], "o", color=colour[arm.name], markersize=5)
    axis.set_xlim(0, None)
    axis.set_ylim(0, None)
    axis.set_xlabel("seconds since the run's begin")
    axis.set_ylabel("output tokens so far")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.legend(loc="outside upper center", ncols=legend_columns(len(arms)), frameon=False)
    return figure


def cumulative_tokens(arm: Arm) -> tuple[np.ndarray, np.ndarray]:
    """Seconds, and the tokens that had come by then. Of older results, whose steps do not say how many they
    gave: a request's first one when it came, then one for each row of a decode step."""
    if given := arm.steps.get("output_tokens"):
        return np.asarray(arm.steps["t"]), np.cumsum(given)
    decode = [kind == "decode" for kind in arm.steps["kind"]]
    times = [t for t, is_decode in zip(arm.steps["t"], decode, strict=True) if is_decode]
    counts = [n for n, is_decode in zip(arm.steps["useful"], decode, strict=True) if is_decode]
    times, counts = times + arm.requests["first_token"], counts + [1] * len(arm.requests["first_token"])
    order = np.argsort(times, kind="stable")
    return np.asarray(times)[order], np.cumsum(np.asarray(counts)[order])


@styled
def pages(arms: Sequence[Arm], num_pages: int | None) -> Figure:
    """Pages of the cache in use: a panel for each arm, all on one scale; and, as far as it is known, what a
    cache without pages would hold."""
    figure, axes = new_figure(0.8 + 0.95 * len(arms), rows=len(arms), sharex=True, sharey=True)
    colour = colours([arm.name for arm in arms])
    most = max(max(arm.steps["pages_used"]) for arm in arms)
    for axis, arm in zip(axes, arms, strict=True):
        used, contiguous = arm.steps["pages_used"], arm.steps.get("pages_contiguous")
        axis.fill_between(arm.steps["t"], used, step="post", color=colour[arm.name], linewidth=0, alpha=0.85)
        title = f"{arm.name}: at most {max(used):,}" + (f" of {num_pages:,}" if num_pages else "")
        if contiguous:
            axis.step(arm.steps["t"], contiguous, where="post", color="black", linewidth=0.8)
            most = max(most, *contiguous)
            title += f"; contiguous (line): at most {max(contiguous):,}"
        axis.set_title(title)
        axis.set_ylabel("pages")
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes[-1].set_xlim(0, None)
    axes[-1].set_ylim(0, 1.05 * most)
    axes[-1].set_xlabel("seconds since the run's begin")
    return figure


@styled
def step_times(arms: Sequence[Arm]) -> Figure | None:
    """Each step's time over its floor; None where no floor was measured."""
    known = [arm for arm in arms if any(floor for floor in arm.steps["floor_s"])]
    if not known:
        return None
    kinds = [kind for kind in KINDS if any(kind in arm.steps["kind"] for arm in known)]
    figure, axes = new_figure(0.6 + 3.1 * len(kinds), rows=len(kinds))
    colour = colours([arm.name for arm in arms])
    for axis, kind in zip(axes, kinds, strict=True):
        floors: list[float] = []
        for arm in known:
            columns = zip(arm.steps["kind"], arm.steps["floor_s"], arm.steps["device_s"], strict=True)
            points = [(1e3 * floor, 1e3 * time) for k, floor, time in columns if k == kind and floor and time]
            points = points[:: max(1, -(-len(points) // MAX_POINTS))]
            if points:
                axis.plot(*zip(*points, strict=True), "o", color=colour[arm.name], markersize=3, alpha=0.45)
                floors += [floor for floor, _ in points]
        if floors:
            line = np.linspace(0.9 * min(floors), 1.1 * max(floors))
            axis.plot(line, line, color="black", linewidth=1.5)
            axis.annotate("the floor", (line[-1], line[-1]), (0, 5), textcoords="offset points", ha="right")
            axis.set_yscale("log")
            logarithmic(axis.yaxis)
        axis.set_title(f"{kind} steps")
        axis.set_xlabel("floor of the step's useful work, ms")
        axis.set_ylabel("measured, ms, logarithmic")
    handles = [Line2D([], [], marker="o", linestyle="", color=colour[arm.name]) for arm in known]
    names = [arm.name for arm in known]
    figure.legend(handles, names, loc="outside upper center", ncols=legend_columns(len(known)), frameon=False)
    return figure
