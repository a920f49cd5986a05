"""Whether the kernels of one compiler are right on this device: no time is worth anything before that.

A row for each case: decode and prefill attention beside plain JAX in float32, with NaN wherever nothing may
be read, and the same bits twice; rotation and the write of the cache in one. With the heads of Llama-3 8B,
Llama-2 7B and Llama-3.2 1B, and pages of 16 tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from bench.gpu_suite.plan import BY_NAME
from bench.gpu_suite.task import Compiled, NotHere, Row, Task, compile_all, reason_of
from bench.kernels.problems import DTYPE, GQA, GQA_64, MHA, TINY, Heads
from pallas_kernels import _compat, proof
from pallas_kernels.implementations import declines
from pallas_kernels.problem import Problem

RUN_S = 8.0  # kept for running what is compiled

Check = Callable[[], None]


class Declined(Exception):
    """A compiler's kernels do not take a problem; the message says why."""


def run(task: Task) -> None:
    """A row for each case, none of which runs before all are compiled."""
    name, interpret = task.part.removeprefix("correct-"), jax.devices()[0].platform == "cpu"
    if name == "mosaic" and not _compat.HAS_MOSAIC:
        raise NotHere(f"jax {jax.__version__} has no {name} kernels: they need 0.11")
    cases = TINY_CASES if task.tiny else CASES
    jobs = {case: functools.partial(_compile, name, case, interpret) for case in cases}
    at_once = BY_NAME[task.part].waves[0].at_once
    for case, outcome in compile_all(jobs, at_once, task.left_s - RUN_S).items():
        task.emit({"case": _name(case), "op": case.kind, "implementation": name, **_run(outcome)})


def _run(outcome: Compiled[Check] | str) -> Row:
    if isinstance(outcome, str):
        status = "declined" if outcome.startswith(Declined.__name__) else "failed"
        return {"status": status, "reason": outcome}
    try:
        outcome.program()
    except proof.WrongAnswer as error:
        return {"status": "WRONG", "reason": str(error)}
    except Exception as error:  # whatever a device says; the next cases show whether it lives
        return {"status": "failed", "reason": reason_of(error)}
    return {"status": "ok", "compile_s": outcome.seconds}


def _compile(name: str, case: Problem, interpret: bool) -> Check:
    if reason := declines(name, case, None if interpret else jax.devices()[0]):
        raise Declined(reason)
    trial = proof.make_trial(case)
    return functools.partial(proof.check, proof.compile_trial(name, trial, interpret=interpret), trial)


def _name(case: Problem) -> str:
    size = f"{case.slots} slots" if case.kind == "decode" else f"{case.tokens} tokens"
    heads = f"{case.num_heads} / {case.kv_heads} heads of {case.head_dim}"
    return f"{case.kind} {heads}, page {case.page_size}, {size}"


def _cases(heads: Heads, page_size: int) -> tuple[Problem, ...]:
    sizes, pages_per_seq = heads[1:], 2048 // page_size
    return (
        Problem("decode", DTYPE, 64, 64, *sizes, 64 * pages_per_seq, page_size, pages_per_seq),
        Problem("prefill", DTYPE, 512, 32, *sizes, 32 * pages_per_seq, page_size, pages_per_seq),
        Problem("rotate", DTYPE, 64, 64, *sizes, 64 * pages_per_seq, page_size, pages_per_seq),
    )


CASES = [
    case for heads, page in ((GQA, 64), (MHA, 64), (GQA_64, 64), (GQA, 16)) for case in _cases(heads, page)
]
TINY_CASES = [
    Problem("decode", DTYPE, 2, 2, *TINY[1:], 4, 16, 2),
    Problem("rotate", DTYPE, 8, 8, *TINY[1:], 8, 16, 2),
]
