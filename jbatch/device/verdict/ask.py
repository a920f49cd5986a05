"""Asking another process about kernels, which may do to it what they like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from jbatch.device.verdict.record import Gpu, Kernel, Outcome, Status, Verdict
from jbatch.device.verdict.request import Request

COMMAND = (
    sys.executable,
    "-P",
    "-m",
    "jbatch.device.verdict.child",
)  # -P: no modules of the current directory
TIME_LIMIT = "no answer in time"
START_LIMIT_S = 120.0  # to import JAX and open the device, from a cold disk too
PREPARE_LIMIT_S = 60.0  # of a kernel, before its own limit begins: trials, in plain JAX on the CPU
MAX_REASON = 300  # characters of what a process said at its end


class Told(NamedTuple):
    """What a process said before it ended, and how it ended."""

    gpu: Gpu | None
    outcomes: dict[Kernel, Outcome]
    stage: tuple[Kernel, str] | None  # of a kernel that it began with, and never had done with
    ended: str  # why it has said no more; empty where it was done


def check_kernels(
    request: Request, command: Sequence[str] = COMMAND, start_limit_s: float = START_LIMIT_S
) -> Verdict:
    """Outcomes of kernels, each checked in a process that no kernel before it has spoilt. All those processes
    have ended when this returns.

    Of an op, those behind the first that passes are not checked.
    """
    gpu: Gpu | None = None
    outcomes: dict[Kernel, Outcome] = {}
    while todo := _still_to_check(request.kernels, outcomes):
        told = _ask(request._replace(kernels=todo), command, start_limit_s)
        gpu = told.gpu or gpu
        outcomes |= told.outcomes
        if told.stage is not None:
            outcomes[told.stage[0]] = _outcome_of_end(*told.stage[1:], told.ended, request)
        elif not told.outcomes:  # it came to no kernel, and another one would not either
            outcomes |= dict.fromkeys(todo, Outcome("unchecked", told.ended))
    in_order = {kernel: outcomes[kernel] for kernel in request.kernels if kernel in outcomes}
    return Verdict(gpu, in_order)


def _still_to_check(kernels: Sequence[Kernel], outcomes: dict[Kernel, Outcome]) -> tuple[Kernel, ...]:
    passed = {kernel.kind for kernel, outcome in outcomes.items() if outcome.status == "passed"}
    return tuple(kernel for kernel in kernels if kernel not in outcomes and kernel.kind not in passed)


def _ask(request: Request, command: Sequence[str], start_limit_s: float) -> Told:
    limit_s = start_limit_s + len(request.kernels) * (PREPARE_LIMIT_S + request.limit_s)
    with tempfile.TemporaryFile() as errors:
        try:
            ended = subprocess.run(
                command,
                input=json.dumps(request).encode(),
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=limit_s,
                env=_environment(request.platform),
                process_group=0,  # a Ctrl-C is meant for this process alone, which then ends that one
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return _told(error.output or b"", TIME_LIMIT)
        except OSError as error:
            return _told(b"", f"{command[0]} does not start: {error}")
        errors.seek(0)
        return _told(ended.stdout, _end_of(ended.returncode, errors.read()))


def _environment(platform: str) -> dict[str, str]:
    """Modules are found as this process finds them. Memory is taken as it is needed: this process may have
    most of it. Plain JAX runs on the CPU."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    platforms = "cpu" if platform == "cpu" else f"{platform},cpu"
    own = {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_PLATFORMS": platforms}
    return {**os.environ, **own}


def _end_of(code: int, errors: bytes) -> str:
    """How a process ended, and the last it said; empty for one that was done."""
    if code == 0:
        return ""
    if code == -signal.SIGALRM:
        return TIME_LIMIT
    how = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    lines = errors.decode(errors="replace").strip().splitlines() or [""]
    return f"{how}: {lines[-1][:MAX_REASON]}" if lines[-1] else how


def _told(output: bytes, ended: str) -> Told:
    gpu: Gpu | None = None
    outcomes: dict[Kernel, Outcome] = {}
    stage: tuple[Kernel, str] | None = None
    for line in output.splitlines():
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:  # the end of a line that it did not live to write
            break
        if "gpu" in said:
            gpu = Gpu(*said["gpu"])
        elif "no_gpu" in said:
            ended = said["no_gpu"]
        elif "stage" in said:
            stage = (Kernel(*said["kernel"]), said["stage"])
        else:
            outcomes[Kernel(*said["kernel"])], stage = Outcome(*said["outcome"]), None
    return Told(gpu, outcomes, stage, ended or "it ended without an answer")


def _outcome_of_end(stage: str, ended: str, request: Request) -> Outcome:
    """Of a kernel whose check a process did not survive. A kernel that makes it hang or crash has failed. But
    where compiling takes long the machine may be busy, and what comes before is not the kernel's doing."""
    if ended == TIME_LIMIT:
        status: Status = "failed" if stage == "run" else "unchecked"
        return Outcome(status, f"no answer within {request.limit_s:g} s ({stage})")
    return Outcome("unchecked" if stage == "prepare" else "failed", f"{ended} ({stage})")
