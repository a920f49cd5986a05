"""The process of one part: `python -m bench.gpu_suite.child PART --deadline T --earlier FILE ...`.

Rows are lines of standard output in JSON, behind a word; all other lines are for people.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from bench.gpu_suite.plan import BY_NAME
from bench.gpu_suite.processes import ABOUT, NOT_RUN, ROW
from bench.gpu_suite.task import NotHere, Row, Task, reason_of


def run(task: Task) -> int:
    """A part in this process; the exit status."""
    from bench.measure import manifest
    from jbatch.config import EngineConfig
    from jbatch.device.platform import prepare_jax

    prepare_jax(EngineConfig(compilation_cache_dir=None))
    about = manifest.collect()
    print(ABOUT + json.dumps(about), flush=True)
    if not task.tiny and about["compute_capability"] is None:
        print(f"JAX finds no NVIDIA GPU, but {about['device']}", flush=True)
        return NOT_RUN
    failed = []

    def emit(row: Row) -> None:
        failed.append(row["status"] in ("failed", "WRONG"))
        task.emit(row)

    try:
        importlib.import_module(f"bench.gpu_suite.{BY_NAME[task.part].module}").run(task._replace(emit=emit))
    except NotHere as error:
        print(error, flush=True)
        return NOT_RUN
    return 1 if any(failed) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=BY_NAME)
    parser.add_argument("--deadline", type=float, required=True, help="of time.monotonic: the machine's")
    parser.add_argument("--earlier", type=Path, required=True, help="rows of parts before, by part")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    task = Task(
        args.part,
        args.tiny,
        args.deadline,
        json.loads(args.earlier.read_text()),
        args.out,
        args.work,
        lambda row: print(ROW + json.dumps(row), flush=True),
    )
    try:
        return run(task)
    except Exception as error:
        traceback.print_exc()
        print(reason_of(error), flush=True)
        return 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a compiler that is late would hold the process
