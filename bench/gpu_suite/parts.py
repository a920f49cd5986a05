"""Runs the parts of the GPU suite: each in a process of its own, within its limit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.kernels import command as kernels
from bench.measure import manifest

TRIES = 3  # of a part that can go on behind what it was killed in
QUIET_S = 90.0  # without a line of output, a part hangs
LEAST_S = 12.0  # with less left, no part is started
TAIL_LINES = 20  # of the log of a part that did not end well
EMBED_BYTES = 100_000  # a result of at most this size is also in results.json
NOT_RUN = 4  # exit status of a part that cannot run here; its last line says why

# Not the whole memory at the start: an engine and PyTorch, or a part and what it starts, share the device.
SHARED_MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Part(NamedTuple):
    """A command, without the interpreter in front; in its arguments, "OUT" is the folder of the results and
    "TMP" one that is removed."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    tiny: tuple[str, ...] | None  # further arguments of a tiny run; None: there is nothing to run on a CPU
    full: tuple[str, ...] = ()  # further arguments of a real run
    result: str | None = None  # the file with the result, in OUT
    resume: bool = False  # on after a crash or a hang, with --resume
    tool: tuple[str, ...] = ()  # what the interpreter runs under
    env: dict[str, str] = {}  # noqa: RUF012  # never changed
    only_named: bool = False  # not part of the default run


class Ended(NamedTuple):
    """How a process ended: "ok", "failed", "crashed", "timed out" or "not run"."""

    status: str
    exit_code: int | None
    seconds: float


def run_part(part: Part, folder: Path, scratch: Path, tiny: bool, deadline: float) -> dict[str, Any]:
    """Run a part until it ends, its limit is over, or the deadline (of time.monotonic) has come; a row."""
    row: dict[str, Any] = {"part": part.name}
    if tiny and part.tiny is None:
        return row | {"status": "not run", "reason": "nothing to run without a GPU"}
    if part.tool and shutil.which(part.tool[0]) is None:
        return row | {"status": "not run", "reason": f"{part.tool[0]} is not installed"}
    command = full_command(part, folder, scratch, tiny)
    log = folder / f"{part.name}.log"
    log.write_text("")
    begin = time.monotonic()
    deadline = min(deadline, begin + part.limit_s)
    for attempt in range(TRIES if part.resume else 1):
        left = deadline - time.monotonic()
        if left < LEAST_S and not tiny:
            break
        again = [*command, "--resume"] if attempt else command
        quiet_s = left if tiny else QUIET_S  # a CPU that others use, too, may be quiet for long
        ended = run_process(again, log, left, quiet_s, part.env)
        row |= {**ended._asdict(), "seconds": round(time.monotonic() - begin, 1), "tries": attempt + 1}
        if ended.status not in ("crashed", "timed out"):
            break
    if "status" not in row:
        return row | {"status": "not run", "reason": "no time left"}
    return row | {"command": command, "log": log.name} | _explain(row["status"], log) | _result(part, folder)


def _explain(status: str, log: Path) -> dict[str, Any]:
    """Why a part did not end well, in its own words."""
    lines = log.read_text(errors="replace").splitlines()
    if status == "not run":
        return {"reason": lines[-1] if lines else "it did not say why"}
    return {} if status == "ok" else {"tail": lines[-TAIL_LINES:]}


def _result(part: Part, folder: Path) -> dict[str, Any]:
    """The file that a part left, even when it was stopped, with the content where that is small."""
    path = folder / part.result if part.result else None
    if path is None or not path.exists():
        return {}
    row: dict[str, Any] = {"file": path.name}
    if path.suffix == ".json" and path.stat().st_size <= EMBED_BYTES:
        with contextlib.suppress(json.JSONDecodeError):  # it was killed while it wrote: the file is named
            row["result"] = json.loads(path.read_text())
    return row


def full_command(part: Part, folder: Path, scratch: Path, tiny: bool) -> list[str]:
    """A part's whole command, with its folders in place."""
    more = (part.tiny or ()) if tiny else part.full
    given = (*part.command, *more)
    return [*part.tool, sys.executable, *(_placed(arg, {"OUT": folder, "TMP": scratch}) for arg in given)]


def _placed(argument: str, folders: Mapping[str, Path]) -> str:
    """An argument with a folder in the place of the name that it begins with."""
    head, slash, tail = argument.partition("/")
    return f"{folders[head]}{slash}{tail}" if head in folders else argument


def run_process(command: list[str], log: Path, limit_s: float, quiet_s: float, env: dict[str, str]) -> Ended:
    """Run a command, its output to the terminal and to the end of a log; stop it, and what it started, when
    its time is over or nothing came from it for `quiet_s`."""
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=manifest.ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | SHARED_MEMORY | env,
        start_new_session=True,
        errors="replace",
        text=True,
    )
    heard = [begin]
    copier = threading.Thread(target=_copy_output, args=(process, log, heard), daemon=True)
    copier.start()
    code = None
    try:
        while code is None and time.monotonic() < min(begin + limit_s, heard[0] + quiet_s):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.5)
    finally:
        _stop(process)
    copier.join(timeout=5)
    seconds = time.monotonic() - begin
    if code is None:
        return Ended("timed out", None, seconds)
    if code == NOT_RUN:
        return Ended("not run", code, seconds)
    crashed = code < 0 or code > 128 or code == kernels.DEVICE_LOST
    return Ended("ok" if code == 0 else "crashed" if crashed else "failed", code, seconds)


def _copy_output(process: subprocess.Popen[str], log: Path, heard: list[float]) -> None:
    """Copy a process' output to the log, and to the terminal with the seconds since the beginning; note when
    the last line came."""
    begin = heard[0]
    with log.open("a") as file:
        for line in process.stdout or ():
            heard[0] = time.monotonic()
            file.write(line)
            file.flush()
            print(f"{heard[0] - begin:6.1f}  {line}", end="", flush=True)


def _stop(process: subprocess.Popen[str]) -> None:
    """End the process and its children: none may hold the GPU when the next part starts."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
