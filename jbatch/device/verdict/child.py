"""The process that checks kernels, and may crash or hang instead of the engine.

    python -m jbatch.device.verdict.child

A request in JSON comes in (`request.Request`). Lines of JSON go out, each as soon as it is known: the GPU, or
why there is none; then, of each kernel, the stages of its check, and its outcome. A kernel that does not pass
is the last: what it did to the device is nobody else's trouble.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from jbatch.device.verdict.record import Gpu, Kernel, Outcome
from jbatch.device.verdict.request import Request
from pallas_kernels import proof
from pallas_kernels.implementations import declines

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", "out of memory")
MAX_REASON = 300  # characters

Say = Callable[[Any], None]


def answer(request: Request, say: Say) -> None:
    """Check kernels in turn, up to the first that does not pass; of an op, only the first that does."""
    try:
        device = open_device(request.platform)
    except Exception as error:  # whatever a driver, a plugin and their loader raise
        say({"no_gpu": reason_of(error)})
        return
    say({"gpu": list(device)})
    passed: set[str] = set()
    for kernel in request.kernels:
        if kernel.kind in passed:
            continue
        outcome = check(kernel, request, device, say)
        say({"kernel": list(kernel), "outcome": list(outcome)})
        if outcome.status == "passed":
            passed.add(kernel.kind)
        elif outcome.status != "declined":
            return


def open_device(platform: str) -> Gpu:
    """The first device, which kernels are to run on."""
    import jax

    device = jax.devices(platform)[0]
    return Gpu(device.device_kind, str(getattr(device, "compute_capability", "")), device.platform)


def check(kernel: Kernel, request: Request, device: Gpu, say: Say) -> Outcome:
    """Compile and run one kernel. From the compiler on, the process has `request.limit_s` to live."""
    interpret = request.platform == "cpu"
    problems = [problem for problem in request.problems if problem.kind == kernel.kind]
    for problem in problems:
        if reason := declines(kernel.name, problem, None if interpret else device):
            return Outcome("declined", reason)

    def stage(name: str) -> None:
        say({"kernel": list(kernel), "stage": name})

    try:
        stage("prepare")
        trials = [proof.make_trial(problem) for problem in problems]
        signal.setitimer(signal.ITIMER_REAL, request.limit_s)
        stage("compile")
        runs = [proof.compile_trial(kernel.name, trial, interpret=interpret) for trial in trials]
        stage("run")
        for run, trial in zip(runs, trials, strict=True):
            proof.check(run, trial)
    except proof.WrongAnswer as error:
        return Outcome("failed", str(error))
    except Exception as error:
        reason = reason_of(error)
        lacks_memory = isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
        return Outcome("unchecked" if lacks_memory else "failed", reason)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome("passed")


def reason_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "..."


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever else is printed stays out of the replies
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # at its time limit this process ends, wherever it is
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    request = Request.of_json(json.loads(sys.stdin.read()))
    answer(request, lambda line: print(json.dumps(line), file=replies, flush=True))


if __name__ == "__main__":
    main()
