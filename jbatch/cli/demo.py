"""The demo: 64 prompts on 4 slots, batched in four ways, so that a newcomer sees what batching does."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.cli.tables import Page, Table, meanings
from jbatch.config import ModeName
from jbatch.device.platform import NO_GPU
from jbatch.engine.records import EngineStep
from jbatch.host.metrics import Summary
from jbatch.jobs.files import replacing
from jbatch.llm import LLM
from jbatch.outputs import RequestOutput
from jbatch.progress import progress_bar
from jbatch.sampling_params import SamplingParams
from weights.demo import tasks

MODEL_DIR = Path(tasks.__file__).parent
NUM_PROMPTS, NUM_SLOTS, SEED = 64, 4, 0
REPEATS = 3  # of each mode, for the timing
NUM_SHOWN = 6
PLOT_MARGIN = 9  # characters before a slot's steps
TOKEN_BUCKETS = (16, 64, 256)  # most prompts are short, and a prefill step pads to one of these

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
EMPTY, ENDED = "·", "-"
MODE_TEXTS: dict[ModeName, str] = {
    "unbatched": "one request at a time",
    "static-padded": f"{NUM_SLOTS} requests start together; all slots are computed until all have ended",
    "static": f"{NUM_SLOTS} requests start together; the next {NUM_SLOTS} start when all have ended",
    "continuous": "a slot is filled again as soon as its request has ended",
}


class ModeRun(NamedTuple):
    """One mode's answers and figures."""

    outputs: list[RequestOutput]
    summary: Summary
    elapsed_s: float
    compilations: int
    timeline: list[str]  # one string of NUM_SLOTS characters per step that decodes


def run_demo(json_file: str | None, device: str) -> None:
    """Run all modes, print the comparison, and write the figures to `json_file` where one is given."""
    console = Page()
    examples = tasks.demo_prompts(NUM_PROMPTS, SEED)
    console.print(f"{NUM_PROMPTS} prompts on {NUM_SLOTS} slots: at most {NUM_SLOTS} requests run at once.")
    console.print("Compiling (up to a minute; later runs read a cache) ...")
    begin = time.monotonic()
    options: dict[str, Any] = dict(device=device, max_num_seqs=NUM_SLOTS, max_model_len=256, page_size=16)
    options |= dict(max_num_batched_tokens=TOKEN_BUCKETS[-1], token_buckets=TOKEN_BUCKETS)
    options |= dict(samplers=("greedy",))
    with _no_word_of_the_cpu(), LLM(MODEL_DIR, **options) as llm:
        for each in MODE_TEXTS:
            llm.new_engine(mode=each)  # compiles its programs
        llm.runner.warm_up()  # or the first mode would pay for every first call
        console.print(f"{llm.runner.num_programs} programs ready after {time.monotonic() - begin:.1f} s\n")
        prompts = [example.prompt for example in examples]
        runs: dict[str, ModeRun] = {}
        for name in MODE_TEXTS:
            repeated = [run_mode(llm, name, prompts) for _ in range(REPEATS)]
            runs[name] = min(repeated, key=lambda run: run.elapsed_s)
    right = [
        output.outputs[0].text == example.answer
        for output, example in zip(runs["continuous"].outputs, examples, strict=True)
    ]
    _print_answers(console, examples, runs["continuous"].outputs, right)
    _print_comparison(console, runs)
    plotted = {mode: runs[mode].timeline for mode in ("static", "continuous")}
    for mode, timeline in plotted.items():
        _print_timeline(console, mode, timeline, max(map(len, plotted.values())))
    if json_file is not None:
        figures = {"schema": 1, "right_share": sum(right) / len(right), "modes": _figures(runs)}
        with replacing(json_file) as file:
            file.write(json.dumps(figures, indent=2).encode() + b"\n")


@contextmanager
def _no_word_of_the_cpu() -> Iterator[None]:
    """A demo may run on whatever there is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NO_GPU)
        yield


def run_mode(llm: LLM, mode: Any, prompts: Sequence[str]) -> ModeRun:
    """Complete all prompts with a fresh engine in one mode, greedily."""
    engine = llm.new_engine(mode=mode)
    compiled = llm.runner.compilations_after_warmup
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, SamplingParams(temperature=0.0))
    outputs: dict[str, RequestOutput] = {}
    timeline: list[str] = []
    begin = time.monotonic()
    with progress_bar(f"{mode:13}", len(prompts), "requests") as update:
        while engine.has_unfinished:
            step = engine.step()
            outputs.update((output.request_id, output) for output in step.outputs)
            timeline += _slots(step)
            update(len(outputs))
    return ModeRun(
        outputs=[outputs[str(idx)] for idx in range(len(prompts))],
        summary=engine.summary,
        elapsed_s=time.monotonic() - begin,
        compilations=llm.runner.compilations_after_warmup - compiled,
        timeline=timeline,
    )


def _slots(step: EngineStep) -> list[str]:
    """What each row computes in a step that decodes: a request's letter, a held row that has ended, or
    nothing."""
    plan = step.plan
    if plan is None or not plan.seq_ids:
        return []
    slots = [EMPTY] * NUM_SLOTS
    frozen = plan.frozen or (False,) * len(plan.rows)
    for row, seq_id, ended in zip(plan.rows, plan.seq_ids, frozen, strict=True):
        slots[row] = ENDED if ended else LETTERS[seq_id % len(LETTERS)]
    for chunk in plan.chunks:
        slots[chunk.row] = LETTERS[chunk.seq_id % len(LETTERS)]
    return ["".join(slots)]


def _print_answers(
    console: Page,
    examples: Sequence[tasks.Example],
    outputs: Sequence[RequestOutput],
    right: Sequence[bool],
) -> None:
    for example, output, is_right in list(zip(examples, outputs, right, strict=True))[:NUM_SHOWN]:
        wrong = "" if is_right else f"   wrong: {example.answer}"
        console.print(f"  {_cut(example.prompt)} {_cut(repr(output.outputs[0].text))}{wrong}")
    console.print(f"  ... and {len(examples) - NUM_SHOWN} more: {sum(right)} of {len(right)} right\n")


def _cut(text: str) -> str:
    return text if len(text) <= 50 else f"{text[:23]} ... {text[-22:]}"


def _print_comparison(console: Page, runs: dict[str, ModeRun]) -> None:
    console.print("The same prompts, weights and compiled programs in four arms, each a mode of the engine:")
    console.print(meanings({name: text for name, text in MODE_TEXTS.items()}))
    console.print()
    console.show(runs_table(runs))
    outputs = [[output.outputs[0].text for output in run.outputs] for run in runs.values()]
    differing = sum(len(set(texts)) > 1 for texts in zip(*outputs, strict=True))
    compilations = sum(run.compilations for run in runs.values())
    console.print(
        "Continuous batching decodes and reads prompts in one step; the others do one or the other.\n"
        "A request's end is known one step late, which costs it one slot-step.\n"
        f"On a GPU a step takes about as long for 1 slot as for {NUM_SLOTS}, so the number of steps counts.\n"
        "With a model this small on a CPU, tokens/s shows overhead more than anything else.\n"
        f"tokens/s is of the best of {REPEATS} runs.\n"
        f"Answers that differ between the arms: {differing}. Compilations after warm-up: {compilations}.\n"
    )


def runs_table(runs: Mapping[str, ModeRun]) -> Table:
    """The arms by what they computed; tokens/s are those of the fastest run."""
    rows = []
    for name, run in runs.items():
        s = run.summary
        steps = s.num_steps, s.decode_steps, s.prefill_steps, s.slot_steps
        shares = f"{s.slot_use:.0%}", f"{1 - s.prefill_use:.0%}"
        rows.append((name, *map(str, steps), *shares, f"{s.output_tokens / run.elapsed_s:.0f}"))
    headings = (
        "arm",
        "steps",
        "decode steps",
        "prefill steps",
        "slot-steps",
        "slot use",
        "padding",
        "tokens/s",
    )
    return Table(headings, rows)


def _print_timeline(console: Page, mode: str, timeline: Sequence[str], longest: int) -> None:
    """Plot which request had which slot: slots downwards, steps to the right, both modes on one scale."""
    per_column = max(1, -(-longest // (console.width - PLOT_MARGIN)))
    console.print(f"{mode}: {len(timeline)} steps that decode; a letter is a request, {EMPTY} an idle slot")
    for slot in range(NUM_SLOTS):
        console.print(f"  slot {slot} {''.join(step[slot] for step in timeline[::per_column])}")
    console.print(f"  (one column in {per_column} steps)\n" if per_column > 1 else "")


def _figures(runs: dict[str, ModeRun]) -> dict[str, dict[str, float]]:
    return {
        mode: {
            "num_steps": run.summary.num_steps,
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
