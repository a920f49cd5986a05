"""The demo: 64 prompts on 4 slots in all four batching modes, so that a newcomer sees what batching does."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from jbatch.engine import Engine, EngineStep
from jbatch.llm import LLM
from jbatch.metrics import Summary
from jbatch.policy import MODES
from jbatch.progress import progress_bar
from jbatch.request import RequestOutput, SamplingParams
from weights.demo import tasks

MODEL_DIR = Path(tasks.__file__).parent
NUM_PROMPTS, NUM_SLOTS, SEED = 64, 4, 0
NUM_SHOWN = 6
PLOT_WIDTH = 100

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
EMPTY, ENDED = "·", "-"


class ModeRun(NamedTuple):
    """One mode's answers and figures."""

    outputs: list[RequestOutput]
    summary: Summary
    elapsed_s: float
    compilations: int
    timeline: list[str]  # one string of NUM_SLOTS characters per decode step


def run_demo(json_file: Path | None, device: str) -> None:
    """Run all modes, print the comparison, and write the figures to `json_file` where one is given."""
    console = Console()
    examples = tasks.demo_prompts(NUM_PROMPTS, SEED)
    console.print(
        f"{NUM_PROMPTS} prompts on {NUM_SLOTS} slots. Compiling, or reading the cache of the last run ..."
    )
    begin = time.monotonic()
    options: dict[str, Any] = dict(max_num_seqs=NUM_SLOTS, max_model_len=256, page_size=16)
    with LLM(MODEL_DIR, device=device, max_num_batched_tokens=256, **options) as llm:
        llm.runner.warm_up()  # or the first mode would pay for every first call
        console.print(f"{llm.runner.num_programs} programs ready after {time.monotonic() - begin:.1f} s\n")
        prompts = [example.prompt for example in examples]
        runs: dict[str, ModeRun] = {mode: run_mode(llm, mode, prompts) for mode in MODES}
    right = [
        output.outputs[0].text == example.answer
        for output, example in zip(runs["continuous"].outputs, examples, strict=True)
    ]
    _print_answers(console, examples, runs["continuous"].outputs, right)
    _print_table(console, runs)
    plotted = {mode: runs[mode].timeline for mode in ("static", "continuous")}
    for mode, timeline in plotted.items():
        _print_timeline(console, mode, timeline, max(map(len, plotted.values())))
    if json_file is not None:
        figures = {"schema": 1, "right_share": sum(right) / len(right), "modes": _figures(runs)}
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def run_mode(llm: LLM, mode: Any, prompts: Sequence[str]) -> ModeRun:
    """All prompts through a fresh engine in one mode, greedily."""
    engine = llm.new_engine(mode=mode)
    compiled = llm.runner.compilations_after_warmup
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, SamplingParams(temperature=0.0))
    outputs: dict[str, RequestOutput] = {}
    timeline: list[str] = []
    begin = time.monotonic()
    with progress_bar(f"{mode:13}", len(prompts)) as update:
        while engine.has_unfinished:
            step = engine.step()
            outputs.update((output.request_id, output) for output in step.outputs)
            timeline += _slots(engine, step)
            update(len(outputs))
    return ModeRun(
        outputs=[outputs[str(idx)] for idx in range(len(prompts))],
        summary=engine.summary,
        elapsed_s=time.monotonic() - begin,
        compilations=llm.runner.compilations_after_warmup - compiled,
        timeline=timeline,
    )


def _slots(engine: Engine, step: EngineStep) -> list[str]:
    """What each row computes in a decode step: a request's letter, a held row that has ended, or nothing."""
    plan = step.plan
    if plan is None or plan.bucket.kind != "decode":
        return []
    slots = [EMPTY] * NUM_SLOTS
    frozen = plan.frozen or (False,) * len(plan.rows)
    for row, seq_id, ended in zip(plan.rows, plan.seq_ids, frozen, strict=True):
        slots[row] = ENDED if ended else LETTERS[seq_id % len(LETTERS)]
    return ["".join(slots)]


def _print_answers(
    console: Console,
    examples: Sequence[tasks.Example],
    outputs: Sequence[RequestOutput],
    right: Sequence[bool],
) -> None:
    for example, output in list(zip(examples, outputs, strict=True))[:NUM_SHOWN]:
        prompt = (
            example.prompt
            if len(example.prompt) <= 48
            else f"{example.prompt[:22]} ... {example.prompt[-21:]}"
        )
        console.print(f"  {prompt} [bold]{output.outputs[0].text}[/]", highlight=False)
    console.print(
        f"  ... and {len(examples) - NUM_SHOWN} more: {sum(right)} of {len(right)} right\n", highlight=False
    )


def _print_table(console: Console, runs: dict[str, ModeRun]) -> None:
    console.print("The same prompts, weights and compiled programs in four modes:")
    table = Table(box=box.SIMPLE)
    for heading in (
        "mode",
        "decode steps",
        "slot-steps",
        "slot use",
        "prefill padding",
        "tokens",
        "tokens/s",
    ):
        table.add_column(heading, justify="left" if heading == "mode" else "right", no_wrap=heading == "mode")
    for mode in ("unbatched", "static-padded", "static", "continuous"):
        s = runs[mode].summary
        shares = f"{s.slot_use:.0%}", f"{1 - s.prefill_use:.0%}"
        speed = f"{s.output_tokens / runs[mode].elapsed_s:.0f}"
        table.add_row(mode, str(s.decode_steps), str(s.slot_steps), *shares, str(s.output_tokens), speed)
    console.print(table)
    compilations = sum(run.compilations for run in runs.values())
    console.print(
        "A slot-step is one row of one decode step; slot use is the share of them that gave a token.\n"
        f"Compilations after warm-up: {compilations}.\n"
    )


def _print_timeline(console: Console, mode: str, timeline: Sequence[str], longest: int) -> None:
    """Slots downwards, decode steps to the right; both plots on one scale."""
    per_column = -(-longest // PLOT_WIDTH)
    console.print(
        f"{mode}: {len(timeline)} decode steps, {per_column} a column; a letter is a request, {EMPTY} nothing"
    )
    for slot in range(NUM_SLOTS):
        line = "".join(step[slot] for step in timeline[::per_column])
        console.print(f"  slot {slot} {line}", highlight=False, markup=False, soft_wrap=True)
    console.print()


def _figures(runs: dict[str, ModeRun]) -> dict[str, dict[str, float]]:
    return {
        mode: {
            "decode_steps": run.summary.decode_steps,
            "prefill_steps": run.summary.prefill_steps,
            "slot_steps": run.summary.slot_steps,
            "slot_use": run.summary.slot_use,
            "output_tokens": run.summary.output_tokens,
            "output_throughput": run.summary.output_tokens / run.elapsed_s,
            "compilations_after_warmup": run.compilations,
        }
        for mode, run in runs.items()
    }
