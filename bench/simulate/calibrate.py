"""`jbatch bench calibrate`: what each of an engine's steps costs on this machine.

The engine itself runs workloads of many sizes; each step's time and load are kept, and a model is fitted to
them. So the costs are those of steps as they run: with the host beside them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.claims import claimed
from bench.ladder.arms import ARMS
from bench.ladder.subject import LLMSubject, find_model
from bench.measure import manifest
from bench.measure.drive import drive
from bench.simulate.calm import Calm
from bench.simulate.fit import TimedStep, fit, fit_host
from bench.workloads.workload import Workload, make_workload
from jbatch.cli.tables import Page, Table
from jbatch.model_dir.config_json import load_config
from jbatch.seam.runner import Runner
from jbatch.seam.step_input import StepInput
from jbatch.seam.step_output import StepOutput
from jbatch.sim.cost import CostTable
from jbatch.sim.load import Load, RowLoads

CONTINUOUS = ARMS["continuous"]


class Watched:
    """A runner that notes what each step is asked to compute, and when the host works."""

    def __init__(self, runner: Any):
        self._inner: Runner[Any] = runner
        self._rows = RowLoads(runner.shape)
        self.loads: list[Load] = []
        self.host_s: list[float] = []
        self._left = float("nan")  # when the host was last let go

    @property
    def tenancy(self) -> Any:
        return self._inner.tenancy

    @property
    def samplers(self) -> Any:
        return self._inner.samplers

    @property
    def counts_all(self) -> bool:
        return self._inner.counts_all

    def submit(self, step: StepInput) -> Any:
        """As the inner one; the step's load is worked out while the device works."""
        handle = self._inner.submit(step)
        self.host_s.append(time.monotonic() - self._left)
        self.loads.append(self._rows.take(step)[0])
        return handle

    def is_ready(self, handle: Any) -> bool:
        """As the inner one."""
        return self._inner.is_ready(handle)

    def collect(self, handle: Any) -> tuple[StepOutput, float]:
        """As the inner one."""
        result = self._inner.collect(handle)
        self._left = time.monotonic()
        return result


class Scale(NamedTuple):
    """Lengths of a run's requests, how many of them at once, and how many for each of these."""

    input_len: int
    output_len: int
    size: int
    per_slot: int


class Piece(NamedTuple):
    """What one run of each size gave."""

    steps: list[TimedStep]
    request_s: list[float]  # the host's, for taking in a request: of each run


def calibrate(model: str, max_model_len: int, options: dict[str, Any], repeats: int, seed: int) -> CostTable:
    """Measure. Raises what LLM raises, and ValueError where too few steps were seen."""
    subject = LLMSubject(model, max_model_len, options, measure_floor=False)
    try:
        calm = calm_of(subject)
        table = table_of(subject, [measure(subject, seed + repeat, calm) for repeat in range(repeats)])
        table.about["slow_runs"] = calm.num_slow
        if calm.num_again:
            Page().print(str(calm))
        return table
    finally:
        subject.close()


def calm_of(subject: LLMSubject) -> Calm:
    """The machine, as fast as it is now. The probe: a few steps of all slots."""
    shortest, *_ = _contexts(_room(subject.llm))
    workload = _workload(Scale(shortest, shortest, subject.max_num_seqs, 1), 0, subject.llm)
    return Calm(lambda: drive(subject.new_engine(CONTINUOUS, subject.max_num_seqs), workload).duration_s)


def measure(subject: LLMSubject, seed: int, calm: Calm) -> Piece:
    """Run each size once; again where the machine was slow."""
    llm = subject.llm
    piece = Piece([], [])
    for number, scale in enumerate(_scales(_room(llm), llm.config.decode_sizes())):
        workload = _workload(scale, seed * 1000 + number, llm)
        steps, request_s = calm.run(partial(_run, subject, workload, scale.size))
        piece.steps.extend(steps)
        piece.request_s.append(request_s)
    return piece


def table_of(subject: LLMSubject, pieces: Sequence[Piece]) -> CostTable:
    """The costs of what was measured. Raises ValueError where too few steps were seen."""
    steps = [step for piece in pieces for step in piece.steps]
    request_s = sorted(seconds for piece in pieces for seconds in piece.request_s)
    llm = subject.llm
    host = fit_host(steps, request_s[len(request_s) // 2])
    about = manifest.collect() | subject.about | {"shape": llm.runner.shape._asdict()}
    return CostTable(fit(steps, llm.engine.scheduler.config.buckets), host, about)


def _room(llm: Any) -> int:
    """Tokens of the longest request that its pages hold."""
    return int(llm.engine.scheduler.max_seq_len)


def _contexts(max_model_len: int) -> tuple[int, int, int]:
    """Tokens of short, middling and long prompts."""
    shortest, short, long = (max(2, max_model_len // share) for share in (32, 16, 4))
    return shortest, short, long


def _scales(max_model_len: int, sizes: tuple[int, ...]) -> list[Scale]:
    """Short and long contexts at each number of sequences; many prompts for few tokens; and what decodes
    while many short prompts come, as an engine does most of the time."""
    shortest, short, long = _contexts(max_model_len)
    each = (shortest, 4), (short, 4), (long, 1)
    scales = [Scale(length, length, size, number) for size in sizes for length, number in each]
    scales += [Scale(length, 4, sizes[-1], 8) for length in (shortest, short)]
    return [*scales, Scale(long, 4, sizes[-1], 4), Scale(shortest, short, sizes[-1], 16)]


def _workload(scale: Scale, seed: int, llm: Any) -> Workload:
    return make_workload(
        "random",
        num_prompts=scale.per_slot * scale.size,
        seed=seed,
        vocab_size=llm.model_config.vocab_size,
        max_model_len=_room(llm),
        input_len=scale.input_len,
        output_len=scale.output_len,
        random_range_ratio=0.9,
    )


def _run(subject: LLMSubject, workload: Workload, size: int) -> tuple[list[TimedStep], float]:
    """The steps of a run, and the host's seconds for taking in a request."""
    watched = Watched(subject.llm.runner)
    engine = subject.new_engine(CONTINUOUS, size, runner=watched)
    run = drive(engine, workload)
    records = [event.record for event in run.events if event.record is not None]
    steps = [
        TimedStep(watched.loads[record.step_idx], record.device_s, watched.host_s[record.step_idx])
        for record in records[1:]  # the first begins with what is not of steps
    ]
    return steps, run.events[0].begin / len(workload.items)


def run_calibrate(model: str, options: dict[str, Any], repeats: int, seed: int, path: Path) -> None:
    """Measure, write and print. Raises what `calibrate` raises, and ConfigError for a file that exists."""
    options = dict[str, Any](max_num_seqs=16, samplers=("greedy",), seed=seed) | options
    given = options.get("max_model_len")
    longest = load_config(find_model(model)[0]).max_context_len if given is None else int(given)
    with claimed(path):
        table = calibrate(model, longest, options, repeats, seed)
        table.write(path)
    out = Page()
    out.print(f"{table.about['model']} on {table.about['device']}: what a step costs\n")
    out.show(costs_table(table))
    host = table.host
    out.print(
        f"host: {1e6 * host.step_s:.0f} us a step, {1e6 * host.slot_s:.1f} us more for each sequence that "
        f"decodes, {1e6 * host.request_s:.0f} us a request"
    )


def costs_table(table: CostTable) -> Table:
    """The buckets by what their steps cost."""
    rows = []
    for bucket, cost in sorted(table.buckets.items()):
        median, p90 = (cost.factors[int(share * (len(cost.factors) - 1))] for share in (0.5, 0.9))
        parts = cost.base_s, 1e3 * cost.key_s, 1e3 * cost.longest_s, cost.token_s, cost.chunk_s
        cells = (f"{1e3 * part:.4g}" for part in parts)
        sizes = f"{bucket.slots}", f"{bucket.tokens}", f"{cost.num_steps}"
        rows.append((*sizes, *cells, f"{p90 / median:.2f}"))
    costs = (
        "empty, ms",
        "per 1,000 keys, ms",
        "per 1,000 of the longest, ms",
        "per token, ms",
        "per prompt, ms",
    )
    return Table(("slots", "tokens", "steps seen", *costs, "p90 / p50"), rows, num_names=0)
