"""The sections of a report on what has rows instead of arms: the GPU suite, kernels and steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.kernels import report as kernel_report
from bench.report import bars, page, plot
from bench.report.bars import Bar
from bench.report.colours import BLUE, GREEN, INK, RED
from bench.report.page import Png, Section
from bench.report.plot import Plot
from bench.report.svg import Key, Panel, Picture
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
    shown: list[str | Picture | Png] = [page.records(summary)]
    shares = _shares(content["parts"])
    if shares:
        shown.append(_draw_shares(shares))
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


def _draw_shares(shares: Sequence[tuple[str, float]]) -> Picture:
    """A bar for each row, from above."""
    drawn = [Bar(case, f"{share:.1f} %", [(share, BLUE)]) for case, share in shares]
    caption = "Attention kernels and whole steps: their floor as a share of their time, up to 100 %."
    alt = "Share of the floor. " + "; ".join(f"{bar.name}: {bar.figure}" for bar in drawn) + "."
    high = max(100.0, *(share for _, share in shares))
    return Picture("shares.svg", [bars.panel(drawn, high)], caption, alt, rank=-1)


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
    parts: list[str | Picture | Png] = [page.paragraph(STEPS_TEXTS[kind])]
    timed = [row for row in rows if row["status"] == "ok"]
    if timed:
        parts.append(_draw_steps(timed, kind, f"{file.stem}.svg"))
    parts += [page.records([_short(row) for row in rows]), _manifest(content)]
    return Section(f"{kind.capitalize()} steps against their floor ({_label(content)})", file.stem, parts)


STEPS_TEXTS = {
    "decode": "One token for each of 1 to 256 sequences with the same context, random weights. The floor: "
    "weights and the sequences' keys and values over the measured rate of reading.",
    "prefill": "Whole prompts that fill the step, random weights. The floor: the step's operations over the "
    "measured rate of matrix products.",
}


def _draw_steps(rows: Sequence[Mapping[str, Any]], kind: str, file: str) -> Picture:
    """Share of the floor by number of sequences (decode) or tokens (prefill): a panel for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    panels = [_steps_panel([row for row in rows if row["model"] == model], kind) for model in models]
    shown = [name for name in BACKEND_COLOURS if any(row["attention"] == name for row in rows)]
    keys = [*(Key(f"{name} attention", BACKEND_COLOURS[name]) for name in shown), Key("the floor", INK)]
    caption = f"{kind.capitalize()} steps: their floor as a share of their time; a dot is a step."
    best = (max(rows, key=lambda row: row["share_of_floor"] if row["model"] == m else -1.0) for m in models)
    said = (f"{row['model']}: at most {row['share_of_floor']:.1%}, at {_size(row, kind):,}" for row in best)
    alt = f"Share of the floor of {kind} steps. " + "; ".join(said) + "."
    return Picture(file, panels, caption, alt, keys, rank=0 if kind == "decode" else 8, beside=True)


def _size(row: Mapping[str, Any], kind: str) -> int:
    """Sequences of a decode step, tokens of a prefill step."""
    return int(row["number"] * (1 if kind == "decode" else row["length"]))


def _steps_panel(rows: Sequence[Mapping[str, Any]], kind: str) -> Panel:
    """The steps of one model."""
    sizes = sorted({_size(row, kind) for row in rows})
    label = "sequences" if kind == "decode" else "tokens of the step"
    axes = Plot(plot.doubling(label, sizes), plot.linear("share of the floor, %", 105))
    marks = [axes.line([sizes[0], axes.x.high], [100, 100], INK)]
    for backend, colour in BACKEND_COLOURS.items():
        points = sorted(
            (_size(r, kind), 100 * r["share_of_floor"]) for r in rows if r["attention"] == backend
        )
        if points:
            xs, ys = zip(*points, strict=True)
            marks += [axes.line(xs, ys, colour), axes.points(xs, ys, colour, 6, 1)]
    context = f", {rows[0]['length']:,} tokens of context each" if kind == "decode" else ""
    return axes.panel(f"{rows[0]['model']}{context}", marks)


def kernels(file: Path, content: dict[str, Any]) -> Section:
    """The section on the kernels: the table of bench.kernels, and the pictures that it left."""
    table = kernel_report.table(content["rows"])
    parts: list[str | Picture | Png] = [page.preformatted(table)]
    for name in ("kernels-decode", "kernels-prefill"):
        picture = file.parent / f"{name}.png"
        if picture.exists():
            parts.append(Png(picture.name, picture.read_bytes(), f"{name}: see the axes.", rank=0))
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
