"""Runs a part of the suite: a process of its own, stopped with all it started when its time is over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import manifest

ROW, ABOUT = "row ", "about "  # how lines begin that hold a row, and what the process runs on
NOT_RUN = 4  # exit status of a part that cannot run here; its last line says why
GRACE_S = 3.0  # between a part's own deadline and its end
TAIL_LINES = 20


class Ended(NamedTuple):
    """How a part ended: "ok", "failed", "crashed", "stopped" or "not run"; its exit status, and its last
    lines, but for rows."""

    status: str
    exit_code: int | None
    seconds: float
    tail: list[str]


class Ears(NamedTuple):
    """Who is told what a part says, while it runs."""

    row: Callable[[dict[str, Any]], None]
    about: Callable[[dict[str, Any]], None]
    log: Path


def command(part: str, limit_s: float, out: Path, work: Path, tiny: bool) -> list[str]:
    """The command of a part's process, which is given what lies in `work`/earlier.json. Its deadline counts
    from now: it may be long until its imports are done."""
    deadline = str(round(time.monotonic() + limit_s - GRACE_S, 1))
    files = ["--earlier", work / "earlier.json", "--out", out, "--work", work]
    words = ["-m", "bench.gpu_suite.child", part, "--deadline", deadline, *map(str, files)]
    return [sys.executable, *words, *(["--tiny"] if tiny else [])]


def run(words: Sequence[str], limit_s: float, env: Mapping[str, str], ears: Ears) -> Ended:
    """Run a command to its end, or to its limit."""
    begin = time.monotonic()
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=manifest.ROOT,
        env=dict(env),
        start_new_session=True,
        errors="replace",
        text=True,
    )
    tail: list[str] = []
    listener = threading.Thread(target=_listen, args=(process, ears, tail, begin), daemon=True)
    listener.start()
    code = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):  # none may hold the GPU when the next part starts
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    listener.join(timeout=5)
    return Ended(_status(code), code, round(time.monotonic() - begin, 1), tail[-TAIL_LINES:])


def _status(code: int | None) -> str:
    if code is None:
        return "stopped"
    names = {0: "ok", 1: "failed", NOT_RUN: "not run"}
    return names.get(code, "crashed")


def _listen(process: subprocess.Popen[str], ears: Ears, tail: list[str], begin: float) -> None:
    with ears.log.open("a") as log:
        for line in process.stdout or ():
            log.write(f"{time.monotonic() - begin:6.1f}  {line}")
            log.flush()
            if line.startswith((ROW, ABOUT)):
                with contextlib.suppress(ValueError):  # the end of a line that was not written to its end
                    hear = ears.row if line.startswith(ROW) else ears.about
                    hear(json.loads(line.partition(" ")[2]))
            else:
                tail.append(line.rstrip("\n"))
