"""How much of a running engine's time the device computes, and how much it waits for the host.

All slots decode. Seconds per step of `Engine.step`, plan to result, beside those of the same step of the same
runner, dispatched again and again with nothing in between: where the two are equal, the host is hidden.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

from bench.gpu_suite.task import TINY_OPTIONS, Row, Task
from bench.ladder.subject import find_model
from jbatch import LLM, SamplingParams
from jbatch.config import EngineConfig
from jbatch.engine.engine import Engine
from jbatch.engine.replicas import single
from jbatch.host.pack import pack
from jbatch.host.plan import StepPlan

ROUNDS = 3
SLOTS, PROMPT_LEN, MAX_MODEL_LEN = 64, 128, 512
OPTIONS: dict[str, Any] = {
    "max_num_seqs": SLOTS,
    "decode_buckets": (1, SLOTS),  # a single one would decode in steps that hold prompts, too
    "max_num_batched_tokens": SLOTS * PROMPT_LEN,  # all prompts in one step, so that all lengths are equal
    "token_buckets": (SLOTS * PROMPT_LEN,),
    "max_model_len": MAX_MODEL_LEN,
    "samplers": ("greedy",),
    "enable_prefix_caching": False,  # the same prompts again are to be computed again
    "num_pages": 1 + SLOTS * (MAX_MODEL_LEN // EngineConfig.page_size),
    "show_progress": False,
}


class Case(NamedTuple):
    """A model that decodes as many sequences as its options have slots; all their prompts fit one step."""

    model: str
    options: dict[str, Any]
    prompt_len: int
    steps: int

    @property
    def slots(self) -> int:
        """Sequences that decode."""
        return self.options["max_num_seqs"]


FULL = Case("llama3.2-1b", OPTIONS, PROMPT_LEN, 192)  # a small model: the host has little time to hide in
TINY = Case("demo", TINY_OPTIONS, 16, 24)


def run(task: Task) -> None:
    """One row: milliseconds of an engine's step, and of that step alone."""
    case, backend = TINY if task.tiny else FULL, task.backend()
    name = f"{case.model} {case.slots} slots"
    about = {"case": name, "model": case.model, "slots": case.slots, "attention": backend}
    task.emit(about | measure(case, backend))


def measure(case: Case, backend: str) -> Row:
    """A case's figures with one attention backend."""
    path, options = find_model(case.model)
    with LLM(path, **options | case.options | {"attention_backend": backend}) as llm:
        engine = single(llm.engine, "the idle share")
        page_size, max_tokens = llm.config.page_size, llm.max_model_len - case.prompt_len
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        for number in range(case.slots):
            prompt = [3 + (number + i) % 90 for i in range(case.prompt_len)]
            engine.add_request(str(number), prompt, params)
        step_s, device_s = _engine_steps(engine, case.steps)
        plan = _at_page_begin(engine)
        same_s = statistics.median(_same_step(llm, plan, page_size // (2 * ROUNDS)) for _ in range(ROUNDS))
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
    step = pack(plan, llm.runner.shape)
    llm.runner.collect(llm.runner.submit(step))
    begin = time.perf_counter()
    for _ in range(calls):
        handle = llm.runner.submit(step)
    llm.runner.collect(handle)
    return (time.perf_counter() - begin) / calls
