"""The rows of bench.kernels as a table, a JSON file and pictures."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from bench.kernels.names import FOREIGN
from bench.measure.journal import UNDER_WAY, Row
from jbatch.distribution import install_hint
from pallas_kernels.names import NAMES

DECODE_GOALS = (0.80, 0.92)  # share of the measured read bandwidth, from 64 sequences x 1k tokens
PREFILL_GOALS = (0.40, 0.55)  # share of the measured matrix products
META = ("manifest", "ceilings")
PALETTE = ("#c0392b", "#2471a3", "#7f8c8d", "#1e8449", "#7d3c98", "#ca6f1e")
COLOURS = dict(zip((*NAMES, *FOREIGN["decode"]), itertools.cycle(PALETTE), strict=False))


def line(row: Row) -> str:
    """A row as a line for people; one that is not right has no time."""
    head = f"{row['case']:52} {row['implementation']:12}"
    if row["status"] != "ok":
        error = f" relative error {row['error']:.1e}" if "error" in row else ""
        return f"{head} {row['status']}{error} {row.get('reason', '')}".rstrip()
    text = f"{head} {row['us']:9.1f} us ({row['us_best']:.1f} to {row['us_worst']:.1f})"
    if "floor_us" in row:
        text += f"  floor {row['floor_us']:8.1f}  {100 * row['share']:5.1f} % of {row['bound']}"
        text += f"  {row['bytes_per_s'] / 1e12:6.3f} TB/s"
    if row.get("flop_per_s"):
        text += f"  {row['flop_per_s'] / 1e12:6.1f} TFLOP/s"
    return text + (f"  error {row['error']:.1e}" if "error" in row else "")


def table(rows: Sequence[Row]) -> str:
    """The times by problem, and why there is none where there is none."""
    results = [row for row in rows if row["op"] not in META and row["status"] not in UNDER_WAY]
    lines = [line(row) for row in _sorted(results) if row["status"] != "declined"]
    reasons: dict[tuple[str, str, str], int] = {}
    for row in results:
        if row["status"] == "declined":
            key = (row["op"], row["implementation"], row["reason"])
            reasons[key] = reasons.get(key, 0) + 1
    lines += [f"{op} {name}: {count} x {reason}" for (op, name, reason), count in reasons.items()]
    return "\n".join(lines)


def _sorted(rows: Iterable[Row]) -> list[Row]:
    """The rows by problem, in the order in which problems first came."""
    order: dict[tuple[str, str], int] = {}
    kept = list(rows)
    for row in kept:
        order.setdefault((row["op"], row["case"]), len(order))
    return sorted(kept, key=lambda row: order[row["op"], row["case"]])


def write(rows: Sequence[Row], folder: pathlib.Path) -> None:
    """Write kernels.json and the pictures; print the table."""
    meta = {row["op"]: {k: v for k, v in row.items() if k not in ("op", "case", "implementation", "status")}
            for row in rows if row["op"] in META}  # fmt: skip
    results = [row for row in rows if row["op"] not in META]
    (folder / "kernels.json").write_text(
        json.dumps({"schema": 1, "kind": "kernels", **meta, "rows": results}, indent=1) + "\n"
    )
    print(f"\n{table(rows)}\n\nin {folder}: kernels.jsonl, kernels.json", flush=True)
    try:
        pictures = draw(results, meta.get("ceilings"), folder)
    except ImportError as error:
        print(f"no pictures: {error} ({install_hint('bench')})")
    else:
        print(", ".join(picture.name for picture in pictures) or "no pictures: nothing was timed")


def draw(rows: Sequence[Row], ceilings: dict[str, Any] | None, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw kernels-decode.png and kernels-prefill.png, as far as there are times; their paths.

    Raises:
      ImportError: without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    timed = [row for row in rows if row["status"] == "ok"]
    pictures = []
    decode = [row for row in timed if row["op"] == "decode"]
    prefill = [row for row in timed if row["op"] == "prefill"]
    if decode:
        pictures.append(_draw_decode(decode, folder / "kernels-decode.png"))
    if prefill and ceilings:
        pictures.append(_draw_prefill(prefill, ceilings, folder / "kernels-prefill.png"))
    return pictures


def _draw_decode(rows: list[Row], path: pathlib.Path) -> pathlib.Path:
    """Share of the floor over the context: a column for each batch size, a row for each model and page."""
    models = sorted({(row["heads"], row["page_size"]) for row in rows}, key=lambda m: (m[0], -m[1]))
    batches = sorted({row["batch"] for row in rows})
    figure, axes = _panels(len(models), len(batches))
    for (heads, page_size), line_of_axes in zip(models, axes, strict=True):
        for batch, axis in zip(batches, line_of_axes, strict=True):
            panel = [r for r in rows if (r["heads"], r["page_size"], r["batch"]) == (heads, page_size, batch)]
            _draw_lines(axis, panel, "context", lambda row: 100 * row["share"], "uniform")
            for goal in DECODE_GOALS:
                axis.axhline(100 * goal, color="black", linewidth=0.6, linestyle=":")
            sequences = "1 sequence" if batch == 1 else f"{batch} sequences"
            axis.set_title(f"{heads.upper()}, page {page_size}, {sequences}", fontsize=9)
            axis.set_ylim(0, 105)
    _label(axes, "tokens of the longest sequence", "share of the floor, %", (200, 42_000))
    return _save(figure, axes, "Decode attention: share of the measured read bandwidth", path)


def _draw_prefill(rows: list[Row], ceilings: dict[str, Any], path: pathlib.Path) -> pathlib.Path:
    """TFLOP/s over the tokens of the step: a column for each way the prompts lie."""
    models = sorted({(row["heads"], row["page_size"]) for row in rows}, key=lambda m: (m[0], -m[1]))
    labels = [name for name in ("fresh", "chunk", "prefix", "packed") if name in {r["lengths"] for r in rows}]
    titles = {
        "fresh": "a fresh prompt",
        "chunk": "a chunk behind 8k",
        "prefix": "8 behind 2k cached",
        "packed": "8 fresh prompts",
    }
    peak = ceilings["gemm_flop_per_s"] / 1e12
    figure, axes = _panels(len(models), len(labels))
    for (heads, page_size), line_of_axes in zip(models, axes, strict=True):
        for label, axis in zip(labels, line_of_axes, strict=True):
            panel = [
                r for r in rows if (r["heads"], r["page_size"], r["lengths"]) == (heads, page_size, label)
            ]
            _draw_lines(axis, panel, "tokens", lambda row: row["flop_per_s"] / 1e12, label)
            axis.axhline(peak, color="black", linewidth=0.8)
            for goal in PREFILL_GOALS:
                axis.axhline(goal * peak, color="black", linewidth=0.6, linestyle=":")
            axis.set_title(f"{heads.upper()}, page {page_size}, {titles[label]}", fontsize=9)
            axis.set_ylim(0, 1.05 * peak)
    _label(axes, "query tokens", "TFLOP/s (causal)", (400, 10_500))
    return _save(figure, axes, "Prefill attention; line: measured matrix products, dots: goals", path)


def _draw_lines(axis: Any, rows: list[Row], x: str, y: Any, solid: str) -> None:
    """A line for each implementation; hollow points for other distributions of lengths than `solid`."""
    for name, colour in COLOURS.items():
        mine = sorted((row for row in rows if row["implementation"] == name), key=lambda row: row[x])
        main = [row for row in mine if row["lengths"] == solid]
        others = [row for row in mine if row["lengths"] != solid]
        if main:
            axis.plot(
                [r[x] for r in main], [y(r) for r in main], "o-", color=colour, label=name, markersize=4
            )
        for row in others:
            marker = {"ragged": "s", "one long": "D"}.get(row["lengths"], "^")
            text = f"{name}, {row['lengths']}"
            axis.plot(row[x], y(row), marker, color=colour, fillstyle="none", markersize=5, label=text)


def _panels(num_rows: int, num_columns: int) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    size = (2.2 + 2.6 * num_columns, 1.2 + 2.2 * num_rows)
    return plt.subplots(num_rows, num_columns, figsize=size, squeeze=False, sharey=True)


def _label(axes: Any, x: str, y: str, limits: tuple[int, int]) -> None:
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if not axis.lines or not axis.get_legend_handles_labels()[0]:
            axis.set_visible(False)
            continue
        axis.set_xscale("log", base=2)
        axis.set_xlim(*limits)
        axis.xaxis.set_major_formatter(
            lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"
        )
        axis.set_xlabel(x, fontsize=8)
        axis.set_ylabel(y, fontsize=8)
        axis.tick_params(labelsize=8, labelleft=True)


def _save(figure: Any, axes: Any, title: str, path: pathlib.Path) -> pathlib.Path:
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="upper right", fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0, 1 - 1.9 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=120)
    return path
