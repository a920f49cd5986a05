"""Asking another process about kernels. Most are a few lines of a script; the last tests run the real one."""

import json
import sys
import time

import pytest

from jbatch.device.verdict import ask
from jbatch.device.verdict.ask import check_kernels
from jbatch.device.verdict.record import Gpu, Kernel, Outcome
from jbatch.device.verdict.request import Request
from pallas_kernels.problem import Problem

MOSAIC, TRITON = Kernel("mosaic", "decode"), Kernel("triton", "decode")
DECODE = Problem("decode", "bfloat16", 2, 2, 2, 1, 16, num_pages=2, page_size=16, pages_per_seq=4)
PREFILL = DECODE._replace(kind="prefill", tokens=32)
REQUEST = Request((MOSAIC, TRITON), (DECODE,), platform="cpu", limit_s=0.5)
HEAD = """
import json, os, signal, sys, time
kernels = json.loads(sys.stdin.read())[0]
say = lambda line: print(json.dumps(line), flush=True)
say({"gpu": ["NVIDIA Test", "9.0", "gpu"]})
for kernel in kernels:
    for stage in ("prepare", "compile", "run"):
        say({"kernel": kernel, "stage": stage})
        if kernel[0] == "mosaic" and stage == STAGE:
            WHAT
    say({"kernel": kernel, "outcome": ["passed", ""]})
    break
"""

TIMER = "signal.setitimer(signal.ITIMER_REAL, .01); time.sleep(9)"


def script(what: str, stage: str = "run") -> list[str]:
    """A process in which a stage of Mosaic's kernel ends like this; Triton's passes."""
    return [sys.executable, "-I", "-S", "-c", HEAD.replace("STAGE", repr(stage)).replace("WHAT", what)]


@pytest.mark.parametrize(
    "what, stage, outcome",
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "run", ("failed", "killed by SIGSEGV (run)")),
        ("os.kill(os.getpid(), signal.SIGKILL)", "compile", ("failed", "killed by SIGKILL (compile)")),
        ("os._exit(3)", "run", ("failed", "exit status 3 (run)")),
        ("sys.exit('F0 failed:\\nno layout')", "run", ("failed", "exit status 1: no layout (run)")),
        ("os.close(1); os._exit(0)", "run", ("failed", "it ended without an answer (run)")),
        (TIMER, "run", ("failed", "no answer within 0.5 s (run)")),
        (TIMER, "compile", ("unchecked", "no answer within 0.5 s (compile)")),
        ("sys.exit('no room')", "prepare", ("unchecked", "exit status 1: no room (prepare)")),
    ],
)  # fmt: skip
def test_a_process_that_ends_under_a_kernel_is_an_answer(what, stage, outcome):
    """And the next kernel is checked in a new one."""
    verdict = check_kernels(REQUEST, script(what, stage))
    assert verdict.gpu == Gpu("NVIDIA Test", "9.0")
    assert verdict.outcomes == {MOSAIC: Outcome(*outcome), TRITON: Outcome("passed")}
    assert verdict.proven == {"decode": "triton"}


def test_a_hang_that_no_timer_ends_is_ended_from_outside(monkeypatch):
    monkeypatch.setattr(ask, "PREPARE_LIMIT_S", 0.0)
    request = REQUEST._replace(kernels=(MOSAIC,), limit_s=0.1)
    begin = time.monotonic()
    verdict = check_kernels(request, script("time.sleep(60)"), start_limit_s=0.3)
    assert verdict.outcomes == {MOSAIC: Outcome("failed", "no answer within 0.1 s (run)")}
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "program, reason",
    [
        ('print(\'{"no_gpu": "no CUDA"}\')', "no CUDA"),
        ("import sys; sys.exit('cannot import jax')", "exit status 1: cannot import jax"),
        ("print('{\"gpu\"', end='')", "it ended without an answer"),
        ("import os; os.abort()", "killed by SIGABRT"),
    ],
)
def test_without_a_device_nothing_is_checked(program, reason):
    verdict = check_kernels(REQUEST, [sys.executable, "-I", "-S", "-c", program])
    assert verdict.gpu is None and not verdict.lasts
    assert verdict.outcomes == dict.fromkeys((MOSAIC, TRITON), Outcome("unchecked", reason))


def test_a_python_that_is_not_there():
    verdict = check_kernels(REQUEST, ["/no/such/python"])
    assert "does not start" in verdict.outcomes[MOSAIC].reason and verdict.proven == {}


def test_the_process_takes_no_memory_in_advance_and_finds_our_modules(monkeypatch):
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    environment = ask._environment("cuda")
    assert environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert environment["JAX_PLATFORMS"] == "cuda,cpu"
    assert environment["PYTHONPATH"].endswith(":/somewhere") and not environment["PYTHONPATH"].startswith(":")


def test_the_real_process_checks_a_real_kernel():
    """Triton's, interpreted on the CPU."""
    triton = Kernel("triton", "prefill")
    verdict = check_kernels(Request((triton,), (PREFILL,), platform="cpu"))
    assert verdict.outcomes == {triton: Outcome("passed")} and verdict.gpu.platform == "cpu"


def test_the_real_process_may_crash_and_hang(monkeypatch):
    """Two processes: the first dies of Mosaic's kernel, the second is stuck in Triton's."""
    monkeypatch.setenv("FAULTS", json.dumps({"mosaic decode": "segfault", "triton decode": "hangs"}))
    request = REQUEST._replace(limit_s=2.0)  # a busy machine must come to the kernel before
    verdict = check_kernels(request, [sys.executable, "-m", "tests.helpers.broken_kernels"])
    reasons = {kernel: outcome.reason for kernel, outcome in verdict.outcomes.items()}
    assert reasons == {MOSAIC: "killed by SIGSEGV (run)", TRITON: "no answer within 2 s (run)"}
    assert verdict.proven == {} and verdict.lasts
