"""How much of a running engine's time the device computes, and how much it waits for the host.

    python -m bench.idle_share [--json FILE] [--seconds S] [--tiny]

All slots decode. Seconds per step of `Engine.step`, plan to result, beside those of the same step of the same
runner, dispatched again and again with nothing in between: where the two are equal, the host is hidden.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any, NamedTuple

import jax

from bench.shapes import model_dir
from bench.step_model import BACKENDS, Rows, add_arguments
from jbatch import LLM, SamplingParams
from jbatch.engine import Engine
from jbatch.errors import ConfigError
from jbatch.plan import StepPlan, pack

PAGE_SIZE = 64
ROUNDS = 3


class Case(NamedTuple):
    """How many sequences, of how many prompt tokens; steps are timed from the first page's end on."""

    model: str
    slots: int
    prompt_len: int
    steps: int


FULL = (Case("llama3.2-1b", 64, 128, 192), Case("llama3-8b", 64, 128, 192))
TINY = (Case("demo", 4, 16, 64),)


def measure(case: Case, backend: str) -> dict[str, Any]:
    """A row's figures, for one attention backend."""
    tokens = case.slots * case.prompt_len  # all prompts in one step, so that all lengths are equal
    longest = case.prompt_len + PAGE_SIZE * (3 + case.steps // PAGE_SIZE)
    options: dict[str, Any] = dict(max_num_seqs=case.slots, decode_buckets=(case.slots,))
    options |= dict(max_num_batched_tokens=tokens, token_buckets=(tokens,), max_model_len=longest)
    options |= dict(page_size=PAGE_SIZE, num_pages=1 + case.slots * -(-longest // PAGE_SIZE))
    options |= dict(attention_backend=backend, load_format="dummy", show_progress=False)
    with LLM(model_dir(case.model), **options) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=longest - case.prompt_len, ignore_eos=True)
        for row in range(case.slots):
            llm.engine.add_request(str(row), [3 + (row + i) % 90 for i in range(case.prompt_len)], params)
        step_s, device_s = _engine_steps(llm.engine, case.steps)
        plan = _at_page_begin(llm.engine)
        same_s = statistics.median(_same_step(llm, plan, PAGE_SIZE // (2 * ROUNDS)) for _ in range(ROUNDS))
        return {
            "status": "ok",
            "ms": 1e3 * step_s,
            "same_step_ms": 1e3 * same_s,
            "busy_share": min(1.0, same_s / step_s),
            "engine_device_share": device_s / step_s,  # by the engine's own clock
            "compilations_after_warmup": llm.runner.compilations_after_warmup,
        }


def _engine_steps(engine: Engine, steps: int) -> tuple[float, float]:
    """Median seconds of a decode step, and of its part that the engine takes for the device's."""
    for _ in range(4):  # the prompts, and what the first calls cost
        engine.step()
    spans, device = [], []
    for _ in range(steps):
        begin = time.perf_counter()
        step = engine.step()
        spans.append(time.perf_counter() - begin)
        assert step.record is not None and step.record.kind == "decode", "all slots decode"
        device.append(step.record.device_s)
    return statistics.median(spans), statistics.median(device)


def _at_page_begin(engine: Engine) -> StepPlan:
    """Step until the sequences have just begun a page; the plan of the last step that changed no table."""
    while True:
        plan = engine.step().plan
        assert plan is not None, "the sequences are long enough"
        if plan.table_updates:
            plan = engine.step().plan
            assert plan is not None and not plan.table_updates
            return plan


def _same_step(llm: LLM, plan: StepPlan, calls: int) -> float:
    """Seconds per step of one step again and again; `calls` more tokens must fit the sequences' pages."""
    step = pack(plan, llm.runner.shape.num_rows, PAGE_SIZE)
    llm.runner.collect(llm.runner.submit(step))
    begin = time.perf_counter()
    for _ in range(calls):
        handle = llm.runner.submit(step)
    llm.runner.collect(handle)
    return (time.perf_counter() - begin) / calls


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    head = f"{row['model']:12} {row['slots']:4} slots  {row['attention']:8}"
    if row["status"] != "ok":
        return f"{head} {row['status']}: {row['reason']}"
    return (
        f"{head} {row['ms']:8.3f} ms per engine step, {row['same_step_ms']:.3f} ms for the step alone: "
        f"{100 * row['busy_share']:.1f} % busy"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args()
    begin = time.monotonic()
    rows = Rows(args.json, {"kind": "idle-share", "tiny": args.tiny})
    for case in TINY if args.tiny else FULL:
        for backend in BACKENDS:
            row: dict[str, Any] = {"model": case.model, "slots": case.slots, "attention": backend}
            if time.monotonic() - begin > args.seconds:
                row |= {"status": "not run", "reason": "no time left"}
            elif backend != "xla" and jax.devices()[0].platform == "cpu":
                row |= {"status": "not run", "reason": "would be interpreted on a CPU"}
            else:
                row |= _measure_or_say(case, backend)
            rows.add(row, line(row))
            if row["status"] == "ok":  # the fastest that works
                break
    return 1 if any(row["status"] == "failed" for row in rows.rows) else 0


def _measure_or_say(case: Case, backend: str) -> dict[str, Any]:
    try:
        return measure(case, backend)
    except ConfigError as error:
        return {"status": "not run", "reason": str(error)}
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the others go on
        return {"status": "failed", "reason": " ".join(str(error).split())[:300]}


if __name__ == "__main__":
    sys.exit(main())
