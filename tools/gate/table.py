"""The gate's rows for people: as text, and in the README of pallas_kernels.

    python -m tools.gate.table

rewrites that README's table from build/gate-*.json.
"""

from __future__ import annotations

import collections
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "pallas_kernels" / "README.md"
BEGIN, END = "<!-- gate table -->\n", "<!-- end of gate table -->"
MB = 2**20

# What no implementation can go below, over the device's memory bandwidth or its rate of matrix products.
FLOORS = {
    "paged_decode": "Σ kv_len x 2 x kv_heads x head_dim x 2 bytes",
    "paged_decode_combine": "Σ ⌈kv_len / chunk⌉ x heads x (head_dim + 2) x 4 bytes",
    "paged_prefill": "4 x heads x head_dim x Σ keys that each query sees FLOPs",
    "rotate_and_write": "tokens x 2 x (heads + 2 x kv_heads) x head_dim x 2 bytes: read, written",
    "write_kv": "tokens x 2 x 2 x kv_heads x head_dim x 2 bytes: read, written",
    "copy_pages": "pages x 2 x 2 x kv_heads x page_size x head_dim x 2 bytes: read, written",
}
LEGEND = (
    "The figures are the compilers'; no GPU was at hand. Registers are a thread's, spills are bytes. Ranges",
    "are over a line's shapes, pages and versions of jax, and for llama3.2-1b over a layer's 7.8 GB pool.",
)
COLUMNS = ("kernel", "implementation", "jax", "shape", "page", "registers", "spills", "smem", "CTAs per core")
TARGETS = {"h200": "H200", "a100": "A100-SXM4-80GB"}


def text_table(lines: Sequence[Sequence[Any]]) -> str:
    """Right-aligned columns."""
    cells = [["" if cell is None else str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def steps(rows: Iterable[dict[str, Any]]) -> str:
    """The steps' rows."""
    head: tuple[str, ...] = (
        "step",
        "layers",
        "args GB",
        "pool GB",
        "alias GB",
        "temp MB",
        "2 layers",
        "half pool",
    )
    head += ("kernels/layer", "attention", "MB/layer", "loops", "other loops", "branches", "graphs")
    head += ("input read", "remat", "CPU s")
    lines: list[Sequence[Any]] = [head]
    for row in rows:
        per_layer = row["kernels_per_layer"]
        gigabytes = [f"{row[f'{name}_bytes'] / 1e9:.2f}" for name in ("argument", "pool", "alias")]
        temps = [
            f"{row[name] / MB:.1f}" for name in ("temp_bytes", "temp_bytes_thin", "temp_bytes_half_pool")
        ]
        kernels = [f"{per_layer[name]:g}" if per_layer else "" for name in ("other", "attention")]
        kernels += [f"{row['written_per_layer_bytes'] / MB:.1f}" if per_layer else ""]
        tail = [row["kernels"][name] for name in ("attention_while", "while", "conditional")]
        tail += [row[name] for name in ("command_buffers", "readers_of_input", "rematerialised", "cpu_s")]
        lines.append((row["step"], row["layers"], *gigabytes, *temps, *kernels, *tail))
    return text_table(lines)


def kernels(rows: Iterable[dict[str, Any]]) -> str:
    """The kernels' rows, but for what no implementation claims."""
    head: tuple[str, ...] = ("kernel", "implementation", "shape", "page", "pool GB", "registers", "spill B")
    head += ("smem B", "threads", "CTAs/core", "temp MB", "status")
    lines: list[Sequence[Any]] = [head]
    for row in rows:
        names = [row[name] for name in ("kernel", "implementation", "shape", "page_size")]
        if row["status"] == "ok":
            sizes = [
                row[name] for name in ("registers", "spill_bytes", "smem_bytes", "threads", "ctas_per_core")
            ]
            memory = f"{row['pool_bytes'] / 1e9:.1f}", f"{row['temp_bytes'] / MB:.1f}"
            lines.append((*names, memory[0], *sizes, memory[1], "ok"))
        elif row["status"] == "failed":
            lines.append((*names, *[""] * 7, "failed"))
    return text_table(lines)


def notes(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What is not claimed, why, and what ptxas remarks, each once for all the kernels concerned."""
    concerned: collections.Counter[str] = collections.Counter()
    for row in rows:
        name = f"{row['implementation']} {row['kernel']}"
        if row["status"] == "not_claimed":
            concerned[f"not claimed: {name}: {row['reason']}"] += 1
        for remark in row.get("remarks") or ():
            concerned[f"remark: {name}: {remark.split(' in the function')[0]}"] += 1
    return [f"{note} ({count} cases)" for note, count in concerned.items()]


def markdown(results: dict[str, list[dict[str, Any]]]) -> str:
    """Each kernel's floor; and the kernels of each target that are claimed for it."""
    lines = ["| kernel | floor |", "| --- | --- |"]
    lines += [f"| `{kernel}` | {floor} |" for kernel, floor in FLOORS.items()]
    lines += ["", *LEGEND]
    for target, rows in results.items():
        lines += ["", f"### {TARGETS.get(target, target)}", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
        lines += _markdown_lines([row for row in rows if row["status"] != "not_claimed"])
    return "\n".join(lines) + "\n"


def _markdown_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One for shapes that were compiled in the same ways and differ in nothing but registers."""
    by_shape = _grouped(rows, lambda row: (row["kernel"], row["implementation"], row["shape"], _room(row)))
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for (kernel, implementation, _, room), group in by_shape.items():
        line = (kernel, implementation, _listed(group, "page_size"), _listed(group, "jax"), room)
        alike.setdefault(line, []).extend(group)
    order = list(FLOORS)
    for line in sorted(alike, key=lambda line: order.index(line[0])):
        kernel, implementation, pages, versions, room = line
        shapes = ", ".join(dict.fromkeys(row["shape"] for row in alike[line]))
        registers = _range([row["registers"] for row in alike[line] if row["status"] == "ok"])
        yield f"| `{kernel}` | {implementation} | {versions} | {shapes} | {pages} | {registers} | {room} |"


def _grouped(
    rows: list[dict[str, Any]], key: Callable[[dict[str, Any]], tuple[Any, ...]]
) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _room(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"failed: {row['reason']} | |"
    smem = row["smem_bytes"]
    size = f"{smem / 1024:.1f} KB" if smem >= 1024 else f"{smem} B"
    return f"{row['spill_bytes']} | {size} | {row['ctas_per_core']}"


def _listed(rows: list[dict[str, Any]], name: str) -> str:
    return ", ".join(map(str, sorted({row[name] for row in rows})))


def _range(values: list[int]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def write_readme(table: str, readme: Path = README) -> None:
    """Replace what stands between the markers.

    Raises:
      ValueError: where a marker is missing.
    """
    text = readme.read_text()
    if text.count(BEGIN) != 1 or END not in text:
        raise ValueError(f"{readme}: no {BEGIN.strip()} ... {END}")
    before, rest = text.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}")


def main() -> int:
    files = {target: ROOT / "build" / f"gate-{target}.json" for target in TARGETS}
    missing = [str(file) for file in files.values() if not file.exists()]
    if missing:
        print(f"no {', '.join(missing)}: run `make gate`")
        return 1
    write_readme(
        markdown({target: json.loads(file.read_text())["kernels"] for target, file in files.items()})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
