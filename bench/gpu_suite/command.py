"""Measures everything worth measuring on a GPU in one call of under nine minutes, the most telling first.

    python -m bench.gpu_suite --out DIR [--budget SECONDS] [--only PART ...] [--tiny]

Each part is a process of its own with its own time limit: one that crashes or hangs costs no other's result.
DIR gets no sub-folders: a log and a result of each part, as soon as it exists; results.json, which says how
each part ended and is up to date after each; report.html and at most four pictures at the end. What cannot
run here is "not run", with the reason. `--tiny` runs the same code on a CPU, in tiny sizes, in under two
minutes: it shows that all of it works, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu_suite.parts import Part, run_part
from bench.measure import manifest
from jbatch.distribution import install_hint
from pallas_kernels.names import COMPILERS

BUDGET_S = 540.0
TINY_BUDGET_S = TINY_LIMIT_S = 1800.0  # of all parts and of one: how busy a CPU is, nobody knows
REPORT_S = 20.0  # of the budget, for the report
MAX_PICTURES = 4  # PNG files; the page has all of them

# The kernels' own allocations, without graphs, so that the checker sees each of them and each launch.
SANITIZER_ENV = {
    "XLA_PYTHON_CLIENT_ALLOCATOR": "platform",
    "XLA_FLAGS": "--xla_gpu_enable_command_buffer=",
}


def _checks(name: str, limit_s: float) -> Part:
    """The part that runs the kernels' test cases as they are, not interpreted."""
    command = ("-m", "tests.long.check_kernels", "--implementation", name)
    return Part(
        name=f"correct-{name}",
        command=command,
        limit_s=limit_s,
        tiny=("--cases", "1", "--op", "write_kv"),
        full=("--device", "--cases", "6", "--fuzz", "2"),
    )


def _kernels(name: str, ops: tuple[str, ...], limit_s: float, *more: str) -> Part:
    """The part that times the kernels of some ops."""
    command = ("-m", "bench.kernels", "--output-dir", "OUT", *more, "--ops", *ops)
    tiny = ("--smoke", "--implementations", "xla")  # the tests interpret the others
    return Part(name, command, limit_s, tiny, ("--quick",), result="kernels.jsonl", resume=True)


def _steps(kind: str, limit_s: float) -> Part:
    """The part that times steps of whole models; their own limit leaves time to write what was measured."""
    command: tuple[str, ...] = ("-m", "bench.steps", kind, "--ceilings", "OUT/ceilings.json")
    command += ("--json", f"OUT/{kind}-steps.json", "--seconds", str(limit_s - 10))
    return Part(f"{kind}-steps", command, limit_s, ("--tiny",), result=f"{kind}-steps.json")


def _sanitizer(tool: str, limit_s: float) -> Part:
    """The part that runs the kernels on tiny sizes under a checker; what they leave is of no interest."""
    command = ("-m", "bench.kernels", "--smoke", "--ops", "decode", "prefill", "--output-dir", "TMP")
    under = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no")
    implementations = ("--implementations", *COMPILERS)
    return Part(f"sanitizer-{tool}", command + implementations, limit_s, None, tool=under, env=SANITIZER_ENV)


def _torch(name: str, limit_s: float, *arms: str, tiny: bool) -> Part:
    """The part that runs some arms of `jbatch bench compare`."""
    command: tuple[str, ...] = ("-m", "bench.gpu_suite.compare", "--json", f"OUT/compare-{name}.json")
    command += ("--steps", "OUT/decode-steps.json", "--arms", *arms)
    result = f"compare-{name}.json"
    env = {"OMP_NUM_THREADS": "1"}  # PyTorch's host threads would wait for each other in a spin
    name = name if name.startswith("hf-") else f"torch-{name}"
    return Part(name, command, limit_s, ("--tiny",) if tiny else None, result=result, env=env)


PARTS = (
    Part(
        "ceilings",
        ("-m", "bench.measure.ceilings", "--json", "OUT/ceilings.json"),
        40,
        ("--smoke",),
        result="ceilings.json",
    ),
    _checks("mosaic", 50),
    _kernels("kernels-decode", ("decode",), 70),
    _steps("decode", 90),
    _steps("prefill", 35),
    Part(
        "idle-share",
        ("-m", "bench.gpu_suite.idle_share", "--json", "OUT/idle-share.json", "--seconds", "25"),
        40,
        ("--tiny",),
        result="idle-share.json",
    ),
    Part(
        "ladder",
        (
            "-m",
            "bench.gpu_suite.ladder",
            "--out",
            "OUT",
            "--steps",
            "OUT/decode-steps.json",
            "--seconds",
            "55",
        ),
        85,
        ("--tiny",),
        result="batching-mixed_length.json",
    ),
    _torch("paged", 85, "torch-paged", "torch-paged-mosaic", "replay", tiny=True),
    Part(
        "row-bits",
        ("-m", "bench.gpu_suite.row_bits", "--json", "OUT/row-bits.json"),
        25,
        ("--tiny",),
        result="row-bits.json",
    ),
    _torch("hf-continuous", 60, "hf-continuous", tiny=False),
    _torch("hf-generate", 90, "hf-generate", tiny=False),
    _kernels("kernels-prefill", ("prefill", "cache", "plan"), 60, "--resume"),
    _checks("triton", 40),
    Part(
        "step-graphs",
        ("-m", "tools.step_graphs", "--json", "OUT/step-graphs.json", "--keep", "OUT"),
        60,
        ("--smoke", "--attention", "xla"),
        result="step-graphs.json",
    ),
    _sanitizer("memcheck", 60),
    _sanitizer("racecheck", 60),
    Part(
        "tune",
        ("-m", "bench.kernels.tune", "--output-dir", "OUT", "--implementations", "mosaic"),
        300,
        ("--smoke", "--ops", "decode"),
        ("--quick",),
        only_named=True,  # it rewrites pallas_kernels/tuning.json
    ),
)

LAST_MAIN_PART = "row-bits"  # up to here the parts' limits fit the budget; the others take what is left


def run_suite(parts: list[Part], folder: Path, tiny: bool, budget_s: float) -> dict[str, Any]:
    """Run the parts in turn; the content of results.json, which is written after each."""
    begin = time.monotonic()
    result: dict[str, Any] = {"schema": 1, "kind": "gpu-suite", "tiny": tiny, "parts": []}
    result["manifest"] = collect_manifest()
    if result["manifest"]["compute_capability"] is None and not tiny:
        raise SystemExit("no NVIDIA GPU found: nothing to measure; --tiny runs the same parts in tiny sizes")
    deadline = begin + budget_s - REPORT_S
    with tempfile.TemporaryDirectory(prefix="jbatch-suite-") as scratch:
        for part in parts:
            print(f"== {part.name}", flush=True)
            result["parts"].append(run_part(part, folder, Path(scratch), tiny, deadline))
            write(result, folder)
    result["seconds"] = round(time.monotonic() - begin, 1)
    write(result, folder)
    return result


def write(result: dict[str, Any], folder: Path) -> None:
    """Replace results.json as a whole, so that it is never half written."""
    whole = folder / "results.json.partial"
    whole.write_text(json.dumps(result, indent=1) + "\n")
    whole.replace(folder / "results.json")


def collect_manifest() -> dict[str, Any]:
    """The machine, as a process of its own sees it: if JAX started here, it would take the GPU's memory from
    the parts."""
    command = [sys.executable, "-m", "bench.measure.manifest"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=manifest.ROOT, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> int:
    """The command; the exit code is 0 where every part ended well or could not run here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    default = [part.name for part in PARTS if not part.only_named]
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=f"[default: {BUDGET_S:g}]")
    parser.add_argument("--only", nargs="+", choices=names, default=default, metavar="PART", help=str(names))
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU; no measurement")
    args = parser.parse_args()
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"--out {args.out}: is not empty; results are never overwritten")
    parts = [part for part in PARTS if part.name in args.only]
    if args.tiny:
        parts = [part._replace(limit_s=TINY_LIMIT_S) for part in parts]
    budget_s = args.budget or (TINY_BUDGET_S if args.tiny else BUDGET_S)
    result = run_suite(parts, folder, args.tiny, budget_s)
    print(f"\n{table(result['parts'])}\n", flush=True)
    write_report(folder)
    print(f"in {folder}: results.json, report.html")
    return 0 if all(row["status"] in ("ok", "not run") for row in result["parts"]) else 1


def write_report(folder: Path) -> None:
    """Write the page and the pictures; without matplotlib, print a line that says so."""
    from bench.report import command as report

    try:
        report.write(folder, MAX_PICTURES)
    except ImportError as error:
        print(f"no report: {error} ({install_hint('bench')}, then: jbatch bench report {folder})")


def table(rows: list[dict[str, Any]]) -> str:
    """How the parts ended, a line each."""
    lines = (
        f"{r['part']:20} {r['status']:10} {r.get('seconds', 0):7.1f} s  {r.get('reason', '')}" for r in rows
    )
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
