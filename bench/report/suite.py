"""The sections of a report on what has rows instead of arms: the GPU suite, kernels and steps."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.kernels import report as kernel_report
from bench.report import page
from bench.report.figures import BLUE, GREEN, RED, new_figure, styled, to_png
from bench.report.page import Picture, Section
from pallas_kernels.names import NAMES

BACKEND_COLOURS = dict(zip(NAMES, itertools.cycle((RED, BLUE, GREEN)), strict=False))
TINY = "a tiny run: it shows that the code works, and is not a measurement"


def suite(file: Path, content: dict[str, Any]) -> Section:
    """The section on how each part ended, and on its rows."""
    summary = [
        {
            "part": part["part"],
            "status": part["status"],
            "begin": part["begin_s"],
            "seconds": part.get("seconds"),
            "rows": len(part["rows"]),
            "why": (part.get("tail") or [""])[-1],
        }
        for part in content["parts"]
    ]
    shown: list[str | Picture] = [page.records(summary)]
    shares = _shares(content["parts"])
    if shares:
        caption = "Attention kernels and whole steps: their floor as a share of their time."
        shown.append(Picture("shares.png", to_png(_draw_shares(shares, _label(content))), caption, rank=-1))
    for part in content["parts"]:
        if part["rows"]:
            shown += [page.heading(part["part"], 3), page.records([_short(row) for row in part["rows"]])]
        if part.get("tail"):
            text = f"<pre>{page.escape(chr(10).join(part['tail']))}</pre>"
            shown.append(page.details(f"the end of {part['part']}'s log", text))
    shown.append(_manifest(content))
    return Section(f"GPU suite ({_label(content)})", "suite", shown)


def _shares(parts: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """The rows that have a floor: what they are, and its share in per cent."""
    rows = (row for part in parts for row in part["rows"] if row["status"] == "ok")
    found = ((row["case"], row.get("share", row.get("share_of_floor"))) for row in rows)
    return [(case, 100 * share) for case, share in found if share is not None]


@styled
def _draw_shares(shares: Sequence[tuple[str, float]], label: str) -> Figure:
    """A bar for each row, from above."""
    figure, (axis,) = new_figure(1.0 + 0.22 * len(shares))
    names, values = zip(*shares, strict=True)
    axis.barh(range(len(values)), values, color=BLUE)
    axis.set_yticks(range(len(values)), names, fontsize=7)
    axis.invert_yaxis()
    axis.axvline(100, color="black", linewidth=1)
    axis.set_xlabel("share of the floor, %")
    figure.suptitle(textwrap.fill(f"Kernels and steps beside their floor: {label}", 80), fontsize=10)
    return figure


def ceilings(file: Path, content: dict[str, Any]) -> Section:
    """The section on the device's rates."""
    details = {name: row for name, row in content["ceilings"]["details"].items() if "rate" in row}
    rows = [
        {
            "program": name,
            "unit": "TFLOP/s" if name == "gemm" else "TB/s",
            **{key: row[key] / 1e12 for key in ("rate", "worst", "best")},
        }
        for name, row in details.items()
    ]
    text = "Measured on random data; what is called a floor elsewhere is of these rates."
    title = f"What the device can do at most ({_label(content)})"
    return Section(title, "ceilings", [page.paragraph(text), page.records(rows), _manifest(content)])


def steps(file: Path, content: dict[str, Any]) -> Section:
    """The section on decode or prefill steps of whole models."""
    kind = content["kind"].removesuffix("-steps")
    rows = content["rows"]
    parts: list[str | Picture] = [page.paragraph(STEPS_TEXTS[kind])]
    timed = [row for row in rows if row["status"] == "ok"]
    if timed:
        caption = f"{kind.capitalize()} steps: their floor as a share of their time; a dot is a step."
        rank = 0 if kind == "decode" else 8
        parts.append(Picture(f"{file.stem}.png", to_png(_draw_steps(timed, kind)), caption, rank))
    parts += [page.records([_short(row) for row in rows]), _manifest(content)]
    return Section(f"{kind.capitalize()} steps against their floor ({_label(content)})", file.stem, parts)


STEPS_TEXTS = {
    "decode": "One token for each of 1 to 256 sequences with the same context, random weights. The floor: "
    "weights and the sequences' keys and values over the measured rate of reading.",
    "prefill": "Whole prompts that fill the step, random weights. The floor: the step's operations over the "
    "measured rate of matrix products.",
}


@styled
def _draw_steps(rows: Sequence[Mapping[str, Any]], kind: str) -> Figure:
    """Share of the floor by number of sequences (decode) or tokens (prefill): a panel for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = new_figure(0.6 + 2.4 * len(models), rows=len(models))
    for axis, model in zip(axes, models, strict=True):
        mine = [row for row in rows if row["model"] == model]
        for backend, colour in BACKEND_COLOURS.items():
            points = sorted(
                (row["number"] * (1 if kind == "decode" else row["length"]), 100 * row["share_of_floor"])
                for row in mine
                if row["attention"] == backend
            )
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{backend} attention")
        context = f", {mine[0]['length']:,} tokens of context each" if kind == "decode" else ""
        axis.set_title(f"{model}{context}")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_ylim(0, 105)
        axis.axhline(100, color="black", linewidth=1)
        axis.set_xlabel("sequences" if kind == "decode" else "tokens of the step")
        axis.set_ylabel("share of the floor, %")
        axis.legend(loc="lower left", frameon=False)
    return figure


def kernels(file: Path, content: dict[str, Any]) -> Section:
    """The section on the kernels: the table of bench.kernels, and the pictures that it left."""
    table = kernel_report.table(content["rows"])
    parts: list[str | Picture] = [page.preformatted(table)]
    for name in ("kernels-decode", "kernels-prefill"):
        picture = file.parent / f"{name}.png"
        if picture.exists():
            parts.append(Picture(picture.name, picture.read_bytes(), f"{name}: see the axes.", rank=0))
    return Section(f"Attention kernels ({_label(content)})", file.stem, parts)


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a table: shares in per cent, the reason last."""
    short = {key: value for key, value in row.items() if key != "reason"}
    for key, value in short.items():
        if "share" in key and value is not None:
            short[key] = f"{value:.1%}"
    return short | {"why": row.get("reason")}


def _label(content: Mapping[str, Any]) -> str:
    manifest = content.get("manifest") or {}
    if content.get("tiny") or manifest.get("smoke"):
        return TINY
    return str(manifest.get("device") or content.get("device"))


def _manifest(content: Mapping[str, Any]) -> str:
    rows = page.flatten(content.get("manifest") or {})
    return page.details(
        "the machine and the versions", page.table(("", "value"), [(n, str(v)) for n, v in rows])
    )


MAKERS: dict[str, Callable[[Path, dict[str, Any]], Section]] = {
    "gpu-suite": suite,
    "ceilings": ceilings,
    "kernels": kernels,
    "decode-steps": steps,
    "prefill-steps": steps,
}
