"""Runs every check that needs a GPU, the most telling first, each in a process of its own.

    python -m bench.gpu_suite [--budget SECONDS] [--only STAGE ...] [--smoke]

A stage that crashes or hangs costs its own time limit, and no other stage's result. Logs and results go to
bench/results/MACHINE; suite.json there says how each stage ended, and is up to date after each. On a machine
without a GPU, `--smoke` runs the same stages on tiny sizes, with interpreted kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench import kernels, manifest

TRIES = 3  # of a stage that can go on behind what it was killed in
QUIET_S = 120.0  # without a line of output, a stage hangs
LEAST_S = 15.0  # with less left, no stage is started

# The kernels' own allocations, without graphs, so that the checker sees each of them and each launch.
SANITIZER_ENV = {
    "XLA_PYTHON_CLIENT_ALLOCATOR": "platform",
    "XLA_FLAGS": "--xla_gpu_enable_command_buffer=",
}


class Stage(NamedTuple):
    """A command, without the interpreter in front; "OUT" in its arguments is the results' folder."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    smoke: tuple[str, ...] | None  # further arguments of a smoke run; None: there is nothing to run on a CPU
    quick: tuple[str, ...] = ()  # further arguments of a real run
    resume: bool = False  # on after a crash or a hang, with --resume
    tool: tuple[str, ...] = ()  # what the interpreter runs under
    env: dict[str, str] = {}  # noqa: RUF012  # never changed


def _checks(name: str, limit_s: float) -> Stage:
    """A part of the test cases, not interpreted."""
    command = ("tools/check_kernels.py", "--implementation", name)
    smoke = ("--cases", "1", "--op", "decode")
    return Stage(f"correct-{name}", command, limit_s, smoke, ("--device", "--cases", "12", "--fuzz", "4"))


def _kernels(name: str, ops: tuple[str, ...], limit_s: float, *more: str) -> Stage:
    command = ("-m", "bench.kernels", "--output-dir", "OUT", *more, "--ops", *ops)
    return Stage(name, command, limit_s, ("--smoke",), ("--quick",), resume=True)


def _sanitizer(tool: str, limit_s: float) -> Stage:
    """The kernels on tiny sizes, under a checker."""
    command = ("-m", "bench.kernels", "--smoke", "--ops", "decode", "prefill", "--output-dir", f"OUT/{tool}")
    under = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no")
    implementations = ("--implementations", "mosaic", "triton")
    return Stage(f"sanitizer-{tool}", command + implementations, limit_s, None, tool=under, env=SANITIZER_ENV)


STAGES = (
    Stage("ceilings", ("-m", "bench.ceilings", "--json", "OUT/ceilings.json"), 60, ("--smoke",)),
    _checks("mosaic", 150),
    _kernels("kernels-decode", ("decode",), 300),
    _sanitizer("memcheck", 120),
    _kernels("kernels-prefill", ("prefill", "cache", "plan"), 240, "--resume"),
    Stage(
        "step-graphs",
        ("tools/step_graphs.py", "--json", "OUT/step-graphs.json", "--keep", "OUT/step-graphs"),
        150,
        ("--smoke",),
    ),
    _checks("triton", 120),
    Stage(
        "tune",
        ("tools/tune_kernels.py", "--output-dir", "OUT", "--implementations", "mosaic"),
        300,
        ("--smoke", "--ops", "decode"),
        ("--quick",),
    ),
    _sanitizer("racecheck", 120),
)


class Ended(NamedTuple):
    """How a process ended: "ok", "failed", "crashed" or "timed out"."""

    status: str
    exit_code: int | None
    seconds: float


def run_stage(stage: Stage, folder: Path, smoke: bool, deadline: float) -> dict[str, Any]:
    """Run a stage until it ends, its limit is over, or the deadline (of time.monotonic) has come."""
    row: dict[str, Any] = {"stage": stage.name}
    if smoke and stage.smoke is None:
        return row | {"status": "absent", "reason": "nothing to run without a GPU"}
    if stage.tool and shutil.which(stage.tool[0]) is None:
        return row | {"status": "absent", "reason": f"{stage.tool[0]} is not installed"}
    command = full_command(stage, folder, smoke)
    log = folder / f"{stage.name}.log"
    log.write_text("")
    begin = time.monotonic()
    deadline = min(deadline, begin + stage.limit_s)
    for attempt in range(TRIES if stage.resume else 1):
        left = deadline - time.monotonic()
        if left < LEAST_S and not smoke:
            break
        again = [*command, "--resume"] if attempt else command
        ended = run_process(again, log, left, stage.env)
        row |= {**ended._asdict(), "seconds": round(time.monotonic() - begin, 1), "tries": attempt + 1}
        if ended.status in ("ok", "failed"):
            break
    if "status" not in row:
        row |= {"status": "skipped", "reason": "no time left"}
    return row | {"command": command, "log": log.name}


def full_command(stage: Stage, folder: Path, smoke: bool) -> list[str]:
    more = (stage.smoke or ()) if smoke else stage.quick
    arguments = [argument.replace("OUT", str(folder), 1) for argument in stage.command]
    return [*stage.tool, sys.executable, *arguments, *more]


def run_process(command: list[str], log: Path, limit_s: float, env: dict[str, str]) -> Ended:
    """Run a command, its output to the terminal and to the end of a log; stop it, and what it started, when
    its time is over or nothing came from it for long."""
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=manifest.ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | env,
        start_new_session=True,
        errors="replace",
        text=True,
    )
    heard = [begin]
    copier = threading.Thread(target=_copy_output, args=(process, log, heard), daemon=True)
    copier.start()
    code = None
    try:
        while code is None and time.monotonic() < min(begin + limit_s, heard[0] + QUIET_S):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.5)
    finally:
        _stop(process)
    copier.join(timeout=5)
    seconds = time.monotonic() - begin
    if code is None:
        return Ended("timed out", None, seconds)
    crashed = code < 0 or code > 128 or code == kernels.DEVICE_LOST
    return Ended("ok" if code == 0 else "crashed" if crashed else "failed", code, seconds)


def _copy_output(process: subprocess.Popen[str], log: Path, heard: list[float]) -> None:
    """With the seconds since the beginning on the terminal; also note when the last line came."""
    begin = heard[0]
    with log.open("a") as file:
        for line in process.stdout or ():
            heard[0] = time.monotonic()
            file.write(line)
            file.flush()
            print(f"{heard[0] - begin:6.1f}  {line}", end="", flush=True)


def _stop(process: subprocess.Popen[str]) -> None:
    """End the process and its children: none may hold the GPU when the next stage starts."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def collect_manifest() -> dict[str, Any]:
    """In a process of its own: one that starts JAX here would take the GPU's memory from the stages."""
    command = [sys.executable, "-m", "bench.manifest"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=manifest.ROOT, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE", help=str(names))
    parser.add_argument("--budget", type=float, default=3600.0, metavar="SECONDS", help="of all stages")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, interpreted on a CPU")
    parser.add_argument("--output-dir", type=Path)
    args = parser.parse_args()
    deadline = time.monotonic() + args.budget
    about = collect_manifest()
    if about["compute_capability"] is None and not args.smoke:
        print("no NVIDIA GPU found: nothing to check; --smoke runs the same stages on tiny sizes")
        return 2
    folder = manifest.results_dir(args.smoke, args.output_dir, about["machine"]).resolve()
    rows: list[dict[str, Any]] = []
    for stage in STAGES:
        if stage.name not in args.only:
            continue
        print(f"== {stage.name}", flush=True)
        rows.append(run_stage(stage, folder, args.smoke, deadline))
        result = {"schema": 1, "smoke": args.smoke, "manifest": about, "stages": rows}
        (folder / "suite.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{table(rows)}\n\nin {folder}")
    return 0 if all(row["status"] in ("ok", "absent") for row in rows) else 1


def table(rows: list[dict[str, Any]]) -> str:
    lines = (
        f"{r['stage']:20} {r['status']:10} {r.get('seconds', 0):7.1f} s  {r.get('reason', '')}" for r in rows
    )
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
