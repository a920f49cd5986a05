"""`jbatch bench calibrate`: what each of an engine's steps costs on this machine.

The engine itself runs workloads of many sizes; each step's time and load are kept, and a model is fitted to
them. So the costs are those of steps as they run: with the host beside them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.ladder.arms import ARMS
from bench.ladder.subject import LLMSubject, find_model
from bench.measure import manifest
from bench.measure.drive import drive
from bench.results import claimed
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
PER_SLOT = 4  # requests of a run, for each sequence that runs at once


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
    """Lengths of a run's requests, and how many of them at once."""

    input_len: int
    output_len: int
    size: int


class Piece(NamedTuple):
    """What one run of each size gave."""

    steps: list[TimedStep]
    request_s: list[float]  # the host's, for taking in a request: of each run


def calibrate(model: str, max_model_len: int, options: dict[str, Any], repeats: int, seed: int) -> CostTable:
    """Measure. Raises what LLM raises, and ValueError where too few steps were seen."""
    subject = LLMSubject(model, max_model_len, options, measure_floor=False)
    try:
        return table_of(subject, [measure(subject, seed + repeat) for repeat in range(repeats)])
    finally:
        subject.close()


def measure(subject: LLMSubject, seed: int) -> Piece:
    """Run each size once."""
    llm = subject.llm
    piece = Piece([], [])
    for number, scale in enumerate(_scales(llm.max_model_len, llm.config.decode_sizes())):
        steps, request_s = _run(subject, _workload(scale, seed * 1000 + number, llm), scale.size)
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


def _scales(max_model_len: int, sizes: tuple[int, ...]) -> list[Scale]:
    """Short and long contexts at each number of sequences; and many prompts for few tokens."""
    short, long = max(2, max_model_len // 16), max(4, max_model_len // 4)
    scales = [Scale(length, length, size) for size in sizes for length in (short, long)]
    return scales + [Scale(length, 4, sizes[-1]) for length in (short // 2, short, long)]


def _workload(scale: Scale, seed: int, llm: Any) -> Workload:
    return make_workload(
        "random",
        num_prompts=PER_SLOT * scale.size,
        seed=seed,
        vocab_size=llm.model_config.vocab_size,
        max_model_len=llm.max_model_len,
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
        parts = cost.base_s, 1e3 * cost.key_s, cost.longest_s, cost.token_s
        cells = (f"{1e3 * part:.4g}" for part in parts)
        sizes = f"{bucket.slots}", f"{bucket.tokens}", f"{cost.num_steps}"
        rows.append((*sizes, *cells, f"{p90 / median:.2f}"))
    costs = ("empty, ms", "per 1,000 keys, ms", "per longest, ms", "per token, ms")
    return Table(("slots", "tokens", "steps seen", *costs, "p90 / p50"), rows, num_names=0)
