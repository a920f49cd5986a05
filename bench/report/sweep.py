"""The picture of a sweep: throughput, latency and use over the batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.report.figures import colours, columns, legend_columns, logarithmic, new_figure, styled

Columns = dict[str, list[Any]]  # by the fields of SweepPoint
CAPTION = "Each arm at several batch sizes, once each; a ring is its best throughput."


class Panel(NamedTuple):
    """What is drawn over the batch size: a field of SweepPoint, and another one dashed."""

    field: str
    label: str
    dashed: str = ""
    scale: float = 1.0
    logarithmic: bool = False


PANELS = (
    Panel("output_throughput", "output tokens/s"),
    Panel("p50_e2el_ms", "E2EL, ms (dashed: p99)", "p99_e2el_ms", logarithmic=True),
    Panel("slot_use", "slot use, %\n(dashed: device busy)", "device_busy_share", scale=100),
)


def curves(content: Mapping[str, Any]) -> dict[str, Columns]:
    """A sweep's figures by arm and field; of older results, the two that they have."""
    fields = content.get("sweep_fields", ("max_num_seqs", "output_throughput"))
    points_of = content.get("sweep_points", content.get("sweep", {}))
    return {name: columns(points, fields) for name, points in points_of.items() if points}


@styled
def draw(curves: Mapping[str, Columns]) -> Figure:
    """Throughput, latency and use over the batch size; a ring around each arm's best throughput.

    Args:
      curves: of each arm, columns by the fields of SweepPoint; older results have the first two alone.
    """
    panels = [panel for panel in PANELS if all(panel.field in curve for curve in curves.values())]
    figure, axes = new_figure(0.9 + 2.6 * len(panels), rows=len(panels), sharex=True)
    colour = colours(list(curves))
    for axis, panel in zip(axes, panels, strict=True):
        for name, curve in curves.items():
            _curve(axis, panel, curve, colour[name])
        axis.set_ylabel(panel.label)
        if panel.logarithmic:
            axis.set_yscale("log")
            logarithmic(axis.yaxis)
        else:
            axis.set_ylim(0, 1.05 * axis.get_ylim()[1])  # room for a ring
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    sizes = sorted({size for curve in curves.values() for size in curve["max_num_seqs"]})
    axes[-1].set_xscale("log", base=2)
    axes[-1].set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes[-1].set_xlabel("max_num_seqs: sequences that may run at once")
    handles = [Line2D([], [], marker="o", markersize=4, color=colour[name], label=name) for name in curves]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=legend_columns(len(curves)), frameon=False
    )
    return figure


def _curve(axis: Any, panel: Panel, curve: Columns, colour: str) -> None:
    """One arm's lines in one panel, and its ring."""
    sizes, best = curve["max_num_seqs"], int(np.argmax(curve["output_throughput"]))
    for field, style in ((panel.field, "o-"), (panel.dashed, "o--")):
        values = panel.scale * np.asarray(curve.get(field, []), np.float64)  # None becomes NaN: no point
        if not values.size:
            continue
        axis.plot(sizes, values, style, color=colour, markersize=4, linewidth=1.6)
        if field == panel.field:
            axis.plot(sizes[best], values[best], "o", color=colour, fillstyle="none", markersize=11)
