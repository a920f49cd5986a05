"""Measures what only a GPU can show, in one call of under ten minutes, the most telling first.

    python -m bench.gpu_suite [--budget SECONDS] [--out DIR] [--part NAME ...] [--warm ARCHIVE] [--tiny]
    python -m bench.gpu_suite --part torch        # a second call: PyTorch's engines on the same device
    python -m bench.gpu_suite --rehearse          # what fits, where every program takes 15 s to compile

Each part is a process of its own with its own time: one that crashes or hangs costs no other's rows, and
keeps those it has. DIR has at most eight files: results.json, up to date after each row; suite.log;
warm.tar.gz, with which the next call compiles less; files of the batching ladder or of the comparisons;
report.html with at most two pictures. `--tiny` runs the same code on a CPU, in tiny sizes, and measures
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu_suite import archive, environment, plan, processes
from bench.gpu_suite.plan import Part
from bench.gpu_suite.processes import Ears
from bench.measure import manifest
from bench.report import command as report

BUDGET_S = 570.0
TINY_BUDGET_S = 3600.0  # how busy a CPU is, nobody knows
MAX_PICTURES = 2  # files; the page has all
RESULTS = manifest.ROOT / "bench" / "results"


class Suite:
    """A call: its results so far, which are also in a file."""

    def __init__(self, out: Path, work: Path, tiny: bool, budget_s: float):
        self.out, self.work, self.tiny = out, work, tiny
        self._begin = time.monotonic()
        self._deadline = self._begin + budget_s - (0 if tiny else plan.END_S)
        self.earlier = read_earlier(work / "results.json")
        self.result: dict[str, Any] = {
            "schema": 1,
            "kind": "gpu-suite",
            "tiny": tiny,
            "budget_s": budget_s,
            "manifest": {},
            "parts": [],
        }

    def run(self, parts: Sequence[Part]) -> None:
        """Run parts in turn, each within what `plan.allowance` gives it."""
        for index, part in enumerate(parts):
            row: dict[str, Any] = {"part": part.name, "begin_s": round(time.monotonic() - self._begin, 1)}
            self.result["parts"].append(row)
            left = self._deadline - time.monotonic()
            limit = left if self.tiny else plan.allowance(part, parts[index + 1 :], left)
            if limit <= processes.GRACE_S:
                row |= {"status": "no time left", "rows": []}
            else:
                print(f"== {part.name}: at most {limit:.0f} s", flush=True)
                self._run(part, row, limit)
            self.write()

    def _run(self, part: Part, row: dict[str, Any], limit: float) -> None:
        (self.work / "earlier.json").write_text(json.dumps(self.earlier))
        rows: dict[str, dict[str, Any]] = {}
        row |= {"status": "running", "limit_s": round(limit, 1), "rows": []}

        def add(new: dict[str, Any]) -> None:
            rows[new["case"]] = new
            row["rows"] = list(rows.values())
            print(f"  {line(new)}", flush=True)
            self.write()

        def about(told: dict[str, Any]) -> None:
            self.result["manifest"] = self.result["manifest"] or told

        words = processes.command(part.name, limit, self.out, self.work, self.tiny)
        env = environment.of_part(part, self.work, self.tiny, os.environ)
        ended = processes.run(words, limit, env, Ears(add, about, self.out / "suite.log"))
        row |= {"status": ended.status, "exit_code": ended.exit_code, "seconds": ended.seconds}
        if ended.status != "ok":
            row |= {"tail": ended.tail}
        self.earlier[part.name] = row["rows"]
        print(
            f"  {ended.status} after {ended.seconds} s", *ended.tail[-1:] * (ended.status != "ok"), flush=True
        )

    def write(self) -> None:
        """Replace results.json as a whole, so that it is never half written."""
        self.result["seconds"] = round(time.monotonic() - self._begin, 1)
        whole = self.out / "results.json.partial"
        whole.write_text(json.dumps(self.result, indent=1) + "\n")
        whole.replace(self.out / "results.json")


def read_earlier(results: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of an earlier call, by part; those of a tiny one are worth nothing."""
    if not results.exists():
        return {}
    content = json.loads(results.read_text())
    return (
        {} if content["tiny"] else {part["part"]: part["rows"] for part in content["parts"] if part["rows"]}
    )


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    parts = [f"{row['case']}: {row['status']}"]
    for name, value in row.items():
        if isinstance(value, float) and not name.endswith(("_best", "_worst")):
            parts.append(f"{name} {value:.4g}")
    return ", ".join([*parts, *([row["reason"]] if "reason" in row else [])])


def main() -> int:
    """The command; the exit code is 0 where every part ended well, had no time or could not run here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*plan.BY_NAME, *plan.GROUPS]
    parser.add_argument("--out", type=Path, metavar="DIR", help="new, empty, or with warm.tar.gz alone")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=f"[default: {BUDGET_S:g}]")
    parser.add_argument("--part", nargs="+", choices=names, default=[], metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--warm", type=Path, metavar="ARCHIVE", help="of an earlier call [default: the newest]"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU; no measurement")
    parser.add_argument("--rehearse", action="store_true", help="print the timetable, and run nothing")
    args = parser.parse_args()
    parts = plan.choose(args.part)
    if args.warm is not None and not args.warm.is_file():
        parser.error(f"--warm {args.warm}: no such file")
    if args.budget is not None and not args.budget > plan.END_S:
        parser.error(f"--budget {args.budget:g}: must be more than {plan.END_S:g}, which the end takes")
    if args.rehearse:
        print(plan.table(plan.pack(parts, args.budget or BUDGET_S)))
        return 0
    if not args.tiny and not has_gpu():
        parser.error("no NVIDIA GPU found: nothing to measure; --tiny runs the same code on a CPU")
    out = (args.out or next_folder(RESULTS, "gpu-suite")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if any(file.name != archive.NAME for file in out.iterdir()):
        parser.error(f"--out {args.out}: is not empty; results are never overwritten")
    if args.tiny:
        with tempfile.TemporaryDirectory(prefix="jbatch-gpu-suite-") as work:
            return measure(parts, out, Path(work), args)
    environment.clear(environment.WORK)
    return measure(parts, out, environment.WORK, args)


def measure(parts: Sequence[Part], out: Path, work: Path, args: argparse.Namespace) -> int:
    """Run the parts in a work folder, then write archive and report."""
    warm = args.warm or (None if args.tiny else archive.find(out, RESULTS))
    if warm is not None:
        try:
            archive.unpack(warm, work)
            print(f"warm start from {warm}")
        except (OSError, tarfile.TarError) as error:
            print(f"--warm {warm}: cannot be read, so everything is compiled: {error}")
    suite = Suite(out, work, args.tiny, args.budget or (TINY_BUDGET_S if args.tiny else BUDGET_S))
    suite.result["warm"] = str(warm.name) if warm is not None else None
    suite.run(parts)
    left_out = archive.pack(work, out)
    if left_out:
        print(f"{archive.NAME}: no room for {len(left_out)} files")
    print(f"\n{table(suite.result['parts'])}\n", flush=True)
    report.write(out, MAX_PICTURES)
    print(f"in {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    return 0 if all(p["status"] in ("ok", "not run", "no time left") for p in suite.result["parts"]) else 1


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, without opening it: its memory is the parts'."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def next_folder(results: Path, name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3, ... that does not exist."""
    numbers = iter(range(2, 10**6))
    path = results / name
    while path.exists():
        path = results / f"{name}-{next(numbers)}"
    return path


def table(parts: Sequence[dict[str, Any]]) -> str:
    """How the parts ended, a line each."""
    lines = [
        f"{p['part']:16} {p['status']:14} from {p['begin_s']:6.1f} s, {p.get('seconds', 0):6.1f} s, "
        f"{len(p['rows'])} rows"
        for p in parts
    ]
    return "\n".join(lines)
