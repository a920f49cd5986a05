"""Compile the engine's steps and the attention kernels for a GPU that is not here, and check the programs.

    python -m tools.gate h200
    python -m tools.gate h200 --quick   # what CI compiles: each kernel for each size of head, three steps
    python -m tools.gate h200 --ranks 2  # steps on two devices of one machine
    python -m tools.gate h200 --tuned warm.tar.gz   # with what an H200's autotuner chose

One target per process: XLA compiles a second one wrongly. Needs the extra `aot`, and no driver. No
autotuning happens this way, so the choice of GEMMs differs on the device; layouts, aliasing, copies, the
structure of the program and what a kernel takes do not. Tables go to stdout, the rows to
build/gate-TARGET.json, where they replace those of the same jax.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]

from bench.gpu_suite import archive  # noqa: E402
from tools.gate import kernel_case  # noqa: E402
from tools.gate import kernels as gate_kernels  # noqa: E402
from tools.gate import steps as gate_steps  # noqa: E402
from tools.gate import table as gate_table  # noqa: E402
from tools.gate import target as gpu_target  # noqa: E402
from tools.gate.case import Case  # noqa: E402

PARTS = ("kernels", "steps")

AnyCase = TypeVar("AnyCase", kernel_case.Case, Case)


class NoCase(Exception):
    """No case of a part has what --only says in its name; the words of their names."""


def named(cases: list[AnyCase], only: str) -> list[AnyCase]:
    """The cases whose name contains `only`. Raises NoCase where there is none."""
    chosen = [case for case in cases if only in case.name]
    if cases and not chosen:
        raise NoCase(", ".join(dict.fromkeys(word for case in cases for word in case.name.split())))
    return chosen


def run_kernels(target: gpu_target.Target, only: str, quick: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The kernels' rows, and what failed."""
    cases = kernel_case.cases()
    if quick:
        cases = kernel_case.covering(cases)
    rows = [row for case in named(cases, only) for row in gate_kernels.measure(case, target)]
    print(gate_table.kernels(rows))
    for note in gate_table.notes(rows):
        print(note)
    return rows, gate_kernels.failures(rows)


def run_steps(target: gpu_target.Target, only: str, quick: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The steps' rows, and what failed."""
    import jax

    num_ranks = len(target.devices)
    cases = gate_steps.cases(target.name, jax.__version_info__)
    if num_ranks > 1:
        cases = gate_steps.cases_on_several(num_ranks)
    elif quick:
        cases = gate_steps.covering(cases)
    rows = [gate_steps.measure(case, target) for case in named(cases, only)]
    print(gate_table.steps(rows))
    for row in rows:
        print(f"not met: {row['step']}: {'; '.join(row['not_met']) or 'nothing'}")
        if launches := row["layer_kernels"]:
            print(f"a layer of {row['step']} launches:\n  " + "\n  ".join(launches))
    return rows, [f"{row['step']}: {failure}" for row in rows for failure in row["failures"]]


def merge(old: dict[str, Any], part: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """An earlier result with a part's rows in place of those of the same jax."""
    versions = {row["jax"] for row in rows}
    kept = [row for row in old.get(part, []) if row["jax"] not in versions]
    return {"schema": 1, "steps": [], "kernels": []} | old | {part: kept + rows}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=gpu_target.NAMES)
    parser.add_argument("--part", choices=PARTS, help="the other is left out")
    parser.add_argument("--only", default="", help="cases whose name contains this; the rows are not kept")
    parser.add_argument("--quick", action="store_true", help="a part that covers; the rows are not kept")
    parser.add_argument("--ranks", type=int, default=1, help="steps on so many devices; rows are not kept")
    parser.add_argument("--tuned", type=Path, metavar="ARCHIVE", help="of bench.gpu_suite; rows are not kept")
    args = parser.parse_args()
    if args.tuned is not None and not args.tuned.is_file():
        parser.error(f"--tuned {args.tuned}: no such file")
    out = ROOT / "build" / f"gate-{args.target}.json"
    result = json.loads(out.read_text()) if out.exists() else {}
    failed: list[str] = []
    absent: dict[str, str] = {}
    measured = False
    with tempfile.TemporaryDirectory(prefix="jbatch-gate-") as dump:
        tuned = Path(dump) / "tuned" if args.tuned else None
        if tuned is not None:
            archive.unpack(args.tuned, tuned)
        xla_dump = Path(dump) / "xla"  # emptied between compilations
        xla_dump.mkdir()
        target = gpu_target.set_up(args.target, xla_dump, tuned, args.ranks)
        import jax

        print(f"{args.target}, jax {jax.__version__}")
        for part, run in zip(PARTS, (run_kernels, run_steps), strict=True):
            if args.part in (None, part) and (part == "steps" or args.ranks == 1):
                try:
                    rows, failures = run(target, args.only, args.quick)
                except NoCase as error:
                    absent[part] = str(error)
                    continue
                result = merge(result, part, rows)
                failed += failures
                measured = True
    if not measured:
        words = "; ".join(f"{part}: {words}" for part, words in absent.items())
        parser.error(f"--only {args.only!r}: no case has this in its name. Their words are, {words}")
    if not (args.only or args.quick or args.tuned or args.ranks > 1):
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps({"target": args.target} | result, indent=1) + "\n")
    for failure in failed:
        print(f"FAILED {failure}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
