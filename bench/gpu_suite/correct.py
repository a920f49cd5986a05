"""Whether the kernels of one compiler are right on this device: no time is worth anything before that.

A row for each case: decode and prefill attention beside float64 NumPy, and the same bits twice; writes of the
cache, bit for bit. Heads of Llama-3 8B, Llama-2 7B and Llama-3.2 1B, and pages of 16 tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.gpu_suite.plan import BY_NAME
from bench.gpu_suite.task import Compiled, Row, Task, compile_all, reason_of
from bench.kernels import cache_ops, problems
from bench.kernels.arms import Declined, kernel_call, make_setup
from bench.kernels.cache_ops import CacheCase
from bench.kernels.check import TOLERANCE, attend, is_right, relative_error
from bench.kernels.problems import DTYPE, GQA, GQA_64, MHA, TINY, Case, decode_case
from bench.measure import random_data

HEADS = ((GQA, 64), (MHA, 64), (GQA_64, 64), (GQA, 16))  # and tokens of a page
PROMPTS = (200, 72, 16, 8), (200, 72, 520, 140)  # new tokens, and tokens of their sequences
RUN_S = 8.0  # kept for running what is compiled

Check = Callable[[], Row]


def run(task: Task) -> None:
    name = task.part.removeprefix("correct-")
    jobs = {
        case.name: functools.partial(_compile, name, case, jax.devices()[0].platform == "cpu")
        for case in (TINY_CASES if task.tiny else CASES)
    }
    wave = BY_NAME[task.part].waves[0]
    outcomes = compile_all(jobs, wave.at_once, task.left_s - RUN_S)
    for case_name, outcome in outcomes.items():
        row: Row = {"case": case_name, "op": case_name.split()[0], "implementation": name}
        task.emit(row | _run(outcome))


def _run(outcome: Compiled[Check] | str) -> Row:
    if isinstance(outcome, str):
        status = "declined" if outcome.startswith(Declined.__name__) else "failed"
        return {"status": status, "reason": outcome}
    try:
        return outcome.program() | {"compile_s": outcome.seconds}
    except Exception as error:  # whatever a device says; the next cases show whether it lives
        return {"status": "failed", "reason": reason_of(error)}


def _compile(name: str, case: Case | CacheCase, interpret: bool) -> Check:
    if isinstance(case, CacheCase):
        write = cache_ops.calls_for(name, interpret)[case.op]
        check = cache_ops.compile_check(case, write)
        return lambda: {"status": "ok"} if check() else {"status": "WRONG", "reason": "another cache"}
    return _compile_attention(name, case, interpret)


def _compile_attention(name: str, case: Case, interpret: bool) -> Check:
    num_pages = problems.pool_pages(case, 1)
    pool = random_data.kv_pool((num_pages, *problems.page_shape(case)), DTYPE, 5, 1.0)
    setup = make_setup(case, pool, num_caches=1, num_calls=1, interpret=interpret)
    call = kernel_call(name, setup)
    arguments: tuple[Any, ...] = (setup.q, pool, jnp.asarray(setup.tables[0]), setup.lens, call.work)
    compiled = call.function.lower(*arguments).compile()

    def check() -> Row:
        first, second = (np.asarray(compiled(*arguments)) for _ in range(2))
        error = float(relative_error(jnp.asarray(first), jnp.asarray(attend(setup))))
        row: Row = {"status": "ok", "error": error, "tolerance": TOLERANCE}
        if not is_right(error):
            return row | {"status": "WRONG", "reason": f"relative error {error:.1e}"}
        if first.tobytes() != second.tobytes():
            return row | {"status": "WRONG", "reason": "other bits the second time"}
        return row

    return check


def _cases() -> list[Case | CacheCase]:
    decode = [decode_case(heads, page, 8, 1100, "ragged") for heads, page in HEADS]
    prefill = [Case("prefill", heads, page, "packed", *PROMPTS) for heads, page in HEADS]
    write = [CacheCase("write_kv", heads, page, 64, "rows") for heads, page in HEADS]
    return [*decode, *prefill, *write]


CASES = _cases()
TINY_CASES: list[Case | CacheCase] = [CacheCase("write_kv", TINY, 16, 8, "rows")]
