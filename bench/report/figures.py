"""The pictures of a report on arms of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bench.report import bars, plot
from bench.report.arm import Arm
from bench.report.bars import Bar
from bench.report.colours import BLUE, INK, colours
from bench.report.plot import Plot
from bench.report.svg import Key, Panel, Picture

MAX_POINTS = 300  # of an arm, in a panel
CONTIGUOUS = 0.15  # opacity
KINDS = ("decode", "mixed", "prefill")  # of steps
LATENCIES = (
    ("TTFT: from arrival to the first token", "s"),
    ("TPOT: per token after the first", "ms"),
    ("E2EL: from arrival to the last token", "s"),
)
FLOOR_CAPTION = (
    "Each step's time on the device over the least that its useful work can take, at the rates measured in "
    "the same run: weights and cache over the read bandwidth, or products over the rate of matrix products. "
    "A step's time begins when the result before it was taken in: where the host was late with that one, it "
    "can fall below the floor."
)
PAGES_CAPTION = (
    "Pages of the KV cache in use over time. Behind them: what the same sequences would hold in a cache "
    "without pages, which reserves max_model_len for each."
)


def keys(arms: Sequence[Arm]) -> list[Key]:
    """A legend of arms."""
    colour = colours([arm.name for arm in arms])
    return [Key(arm.name, colour[arm.name]) for arm in arms]


def throughput(arms: Sequence[Arm], file: str) -> Picture:
    """Bars of output tokens per second: the median repeat, a dot for each, and a line over their spread."""
    colour = colours([arm.name for arm in arms])
    drawn = []
    for arm in arms:
        value, repeats = arm.figures["output_throughput"], arm.figures["repeats"] or []
        drawn.append(Bar(arm.name, _rate(value, repeats), [(value, colour[arm.name])], repeats))
    caption = "Output tokens per second. A bar is the median repeat, a dot each repeat."
    alt = "Output tokens per second. " + "; ".join(f"{bar.name}: {bar.figure}" for bar in drawn) + "."
    return Picture(file, [bars.panel(drawn)], caption, alt, rank=1)


def _rate(value: float, repeats: Sequence[float]) -> str:
    text = f"{value:,.0f}" if value >= 10 else f"{value:.2f}"
    if len(repeats) < 2:
        return text
    return f"{text} ({min(repeats):,.0f} to {max(repeats):,.0f})"


def latencies(arms: Sequence[Arm], file: str) -> Picture:
    """Cumulative shares of the requests: time to the first token, per token, and to the end."""
    colour = colours([arm.name for arm in arms])
    panels, said = [], []
    for index, (title, unit) in enumerate(LATENCIES):
        scale = 1e3 if unit == "ms" else 1.0
        values = {arm.name: scale * np.sort(request_latencies(arm)[index]) for arm in arms}
        known = np.concatenate([v for v in values.values() if len(v)] or [np.ones(1)])
        axes = Plot(
            plot.logarithmic(f"{unit}, logarithmic", float(known.min()), float(known.max())),
            plot.linear("requests, %", 100),
        )
        marks = [_cumulative(axes, v, colour[name]) for name, v in values.items() if len(v)]
        panels.append(axes.panel(title, marks))
        medians = ", ".join(f"{name} {np.median(v):.3g}" for name, v in values.items() if len(v))
        said.append(f"{title[:4]}, median in {unit}: {medians}")
    caption = "Share of the requests that waited at most so long: the further left, the better."
    return Picture(file, panels, caption, "; ".join(said) + ".", keys(arms), rank=3, beside=True)


def _cumulative(axes: Plot, values: np.ndarray, colour: str) -> str:
    share = 100 * np.arange(len(values) + 1) / len(values)
    return axes.stairs([values[0], *values], share, colour)


def request_latencies(arm: Arm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds of each request: TTFT, TPOT where it has more than one token, E2EL."""
    arrival, first, end, tokens = (
        np.asarray(arm.requests[name], float) for name in ("arrival", "first_token", "end", "output_len")
    )
    many = tokens > 1
    return first - arrival, (end - first)[many] / (tokens[many] - 1), end - arrival


def tokens_over_time(arms: Sequence[Arm], file: str) -> Picture:
    """Output tokens so far: a straight line is a batch that stays full."""
    colour = colours([arm.name for arm in arms])
    found = {arm.name: cumulative_tokens(arm) for arm in arms}
    found = {name: (_some(times), _some(total)) for name, (times, total) in found.items()}
    latest = max(float(times[-1]) for times, _ in found.values())
    most = max(float(total[-1]) for _, total in found.values())
    axes = Plot(plot.linear("seconds since the run began", latest), plot.linear("output tokens so far", most))
    marks = []
    for name, (times, total) in found.items():
        marks.append(axes.line([0.0, *times], [0.0, *total], colour[name]))
        marks.append(axes.points(times[-1:], total[-1:], colour[name], 8, 1))
    ends = "; ".join(
        f"{name}: {total[-1]:,} after {times[-1]:.3g} s" for name, (times, total) in found.items()
    )
    caption = "Output tokens over time. Where a line flattens, the batch has emptied."
    panel = axes.panel("Output tokens over time", marks, height=220)
    return Picture(file, [panel], caption, f"Output tokens: {ends}.", keys(arms), rank=5)


def _some(values: np.ndarray) -> np.ndarray:
    """As many as a line needs: evenly spaced, with the first and the last."""
    return values[np.unique(np.linspace(0, len(values) - 1, MAX_POINTS // 2).astype(int))]


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


def pages(arms: Sequence[Arm], num_pages: int | None, file: str) -> Picture:
    """Pages of the cache in use: a panel for each arm, all on one scale; and, as far as it is known, what a
    cache without pages would hold."""
    colour = colours([arm.name for arm in arms])
    most = max(max(_peaks(arm)) for arm in arms)
    latest = max(arm.steps["t"][-1] for arm in arms)
    axes = Plot(plot.linear("seconds since the run began", latest), plot.linear("pages", most, ticks=3))
    panels, said = [], []
    for arm in arms:
        used, contiguous, times = arm.steps["pages_used"], arm.steps.get("pages_contiguous"), arm.steps["t"]
        marks = [axes.area(times, used, colour[arm.name])]
        text = f"at most {max(used):,}" + (f" of {num_pages:,}" if num_pages else "")
        if contiguous:
            marks.insert(0, axes.area(times, contiguous, INK, CONTIGUOUS))
            text += f"; contiguous: {max(contiguous):,}"
        axes = axes._replace(y=axes.y._replace(label=f"pages: {text}"))
        panels.append(axes.panel(arm.name, marks, height=70))
        said.append(f"{arm.name}: {text}")
    alt = "Pages in use. " + ". ".join(said) + "."
    legend = [Key("pages in use (an arm's colour)", BLUE), Key("a cache without pages", INK, CONTIGUOUS)]
    return Picture(file, panels, PAGES_CAPTION, alt, legend, rank=6, beside=True)


def _peaks(arm: Arm) -> Iterable[int]:
    yield max(arm.steps["pages_used"])
    yield max(arm.steps.get("pages_contiguous") or [0])


def step_times(arms: Sequence[Arm], file: str) -> Picture | None:
    """Each step's time over its floor; None where no floor was measured."""
    known = [arm for arm in arms if any(floor for floor in arm.steps["floor_s"])]
    if not known:
        return None
    kinds = [kind for kind in KINDS if any(kind in arm.steps["kind"] for arm in known)]
    found = [_floor_panel(kind, known, colours([arm.name for arm in arms])) for kind in kinds]
    panels = [panel for panel, _ in found if panel is not None]
    alt = "Median time over the floor. " + "; ".join(said for _, said in found if said) + "."
    legend = [*keys(known), Key("the floor", INK)]
    return Picture(file, panels, FLOOR_CAPTION, alt, legend, rank=7, beside=True) if panels else None


def _floor_panel(kind: str, arms: Sequence[Arm], colour: dict[str, str]) -> tuple[Panel | None, str]:
    """The steps of one kind, and what they say in figures."""
    points: dict[str, np.ndarray] = {}
    for arm in arms:
        columns = zip(arm.steps["kind"], arm.steps["floor_s"], arm.steps["device_s"], strict=True)
        mine = [(1e3 * floor, 1e3 * time) for k, floor, time in columns if k == kind and floor and time]
        if mine:
            points[arm.name] = np.asarray(mine[:: max(1, -(-len(mine) // MAX_POINTS))])
    if not points:
        return None, ""
    every = np.concatenate(list(points.values()))
    axes = Plot(
        plot.linear(
            "floor of the step's useful work, ms", 1.05 * every[:, 0].max(), 0.95 * every[:, 0].min()
        ),
        plot.logarithmic("measured, ms, logarithmic", every.min(), every[:, 1].max()),
    )
    marks = [axes.points(mine[:, 0], mine[:, 1], colour[name], 5, 0.5) for name, mine in points.items()]
    line = np.linspace(every[:, 0].min(), every[:, 0].max(), 20)
    over = ", ".join(f"{name} {np.median(mine[:, 1] / mine[:, 0]):.2g} x" for name, mine in points.items())
    return axes.panel(f"{kind} steps", [*marks, axes.line(line, line, INK)]), f"{kind}: {over}"
