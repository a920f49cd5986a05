"""The picture of a sweep: throughput, latency and use over the batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bench.report import plot
from bench.report.arm import columns
from bench.report.colours import colours
from bench.report.plot import Plot
from bench.report.svg import Key, Panel, Picture

Columns = dict[str, list[Any]]  # by the fields of SweepPoint
CAPTION = "Each arm at several batch sizes, once each; the large dot is its best throughput."


class Measure(NamedTuple):
    """What is drawn over the batch size: a field of SweepPoint, and another one dashed."""

    field: str
    title: str
    label: str
    dashed: str = ""
    scale: float = 1.0
    logarithmic: bool = False


MEASURES = (
    Measure("output_throughput", "Throughput", "output tokens/s"),
    Measure("p50_e2el_ms", "Latency", "E2EL, ms (dashed: p99)", "p99_e2el_ms", logarithmic=True),
    Measure("slot_use", "Use", "slot use, % (dashed: device busy)", "device_busy_share", scale=100),
)


def curves(content: Mapping[str, Any]) -> dict[str, Columns]:
    """A sweep's figures by arm and field; of older results, the two that they have."""
    fields = content.get("sweep_fields", ("max_num_seqs", "output_throughput"))
    points_of = content.get("sweep_points", content.get("sweep", {}))
    return {name: columns(points, fields) for name, points in points_of.items() if points}


def draw(curves: Mapping[str, Columns], file: str) -> Picture:
    """Throughput, latency and use over the batch size; a large dot at each arm's best throughput.

    Args:
      curves: of each arm, columns by the fields of SweepPoint; older results have the first two alone.
    """
    shown = [m for m in MEASURES if all(m.field in curve for curve in curves.values())]
    colour = colours(list(curves))
    best = []
    for name, curve in curves.items():
        at = int(np.argmax(curve["output_throughput"]))
        best.append(f"{name} {curve['output_throughput'][at]:,.0f} at {curve['max_num_seqs'][at]}")
    alt = "Best output tokens/s, and the batch size: " + "; ".join(best) + "."
    panels = [_panel(measure, curves, colour) for measure in shown]
    keys = [Key(name, colour[name]) for name in curves]
    return Picture(file, panels, CAPTION, alt, keys, rank=8, beside=True)


def _panel(measure: Measure, curves: Mapping[str, Columns], colour: Mapping[str, str]) -> Panel:
    """One measure of all arms."""
    sizes = sorted({size for curve in curves.values() for size in curve["max_num_seqs"]})
    known = [
        v for c in curves.values() for f in (measure.field, measure.dashed) for v in _values(measure, c, f)
    ]
    known = [value for value in known if np.isfinite(value)] or [1.0]
    if measure.logarithmic:
        axis = plot.logarithmic(measure.label, min(known), max(known))
    else:
        axis = plot.linear(measure.label, 1.05 * max(known))
    axes = Plot(plot.doubling("max_num_seqs: sequences at once", sizes), axis)
    marks = []
    for name, curve in curves.items():
        at, values = curve["max_num_seqs"], _values(measure, curve, measure.field)
        best = int(np.argmax(curve["output_throughput"]))
        marks.append(axes.line(at, values, colour[name]))
        marks.append(axes.points(at, values, colour[name], 5, 1))
        marks.append(axes.points(at[best : best + 1], values[best : best + 1], colour[name], 11, 1))
        if (dashed := _values(measure, curve, measure.dashed)).size:
            marks.append(axes.line(at, dashed, colour[name], dashed=True))
    return axes.panel(measure.title, marks)


def _values(measure: Measure, curve: Columns, field: str) -> np.ndarray:
    """A field's values; what is not known is NaN, and no point."""
    return measure.scale * np.asarray(curve.get(field, []), np.float64)
