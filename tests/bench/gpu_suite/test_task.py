"""What a part is given, and how it compiles."""

import threading
import time

from bench.gpu_suite.task import Task, compile_all
from jbatch.device.backend import Attention


def task(earlier=(), tiny=False):
    return Task("steps-8b", tiny, time.monotonic() + 60, dict(earlier), None, None, print)


def correct(**statuses):
    return [{"op": op, "status": status} for op, status in statuses.items()]


def test_programs_are_compiled_together():
    barrier = threading.Barrier(3, timeout=20)
    outcomes = compile_all({number: barrier.wait for number in range(3)}, at_once=3, budget_s=20)
    assert sorted(outcome.program for outcome in outcomes.values()) == [0, 1, 2]


def test_what_is_late_or_fails_is_a_reason_and_the_others_are_there():
    late = threading.Event()

    def fail():
        raise ValueError("no\nsuch flag")

    outcomes = compile_all({"late": late.wait, "never": late.wait, "fails": fail, "ok": int}, 3, budget_s=0.3)
    late.set()
    assert outcomes["ok"].program == 0
    assert outcomes["fails"] == "ValueError: no such flag"
    assert outcomes["late"] == outcomes["never"] == "not compiled within 0 s"


def test_attention_is_the_first_compiler_that_was_right():
    right = correct(decode="ok", prefill="ok", rotate="WRONG")  # which attention does without
    both = {"correct-mosaic": right, "correct-triton": right}
    assert task(both).attention()[:2] == ("mosaic", "mosaic")
    assert task(both, tiny=True).backend() == "xla"
    wrong = correct(decode="ok", prefill="WRONG")
    mixed = task(both | {"correct-mosaic": wrong})
    assert mixed.attention()[:2] == ("mosaic", "triton") and mixed.backend() == "xla"
    assert task({"correct-mosaic": correct(decode="ok")}).attention().prefill == "xla", "it was stopped"
    rotates = {"correct-mosaic": correct(decode="ok"), "correct-triton": correct(rotate="ok")}
    assert task(rotates).attention() == Attention("mosaic", "xla", rotate="triton")
    assert task().backend() == "xla"


def test_rates_are_those_of_the_ceilings():
    row = {"status": "ok", "read_bytes_per_s": 2.0, "gemm_flop_per_s": 3.0}
    assert task({"ceilings": [row]}).rates() == (2.0, 3.0)
    assert task().rates() is None
