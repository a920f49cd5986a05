"""The batching ladder: every arm on one engine's weights, kernels and programs, in turn, several times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bench.ladder.arms import Arm, predicted_lens
from bench.ladder.subject import Subject
from bench.measure import measures
from bench.measure.account import step_rows
from bench.measure.drive import Fill, Run, drive
from bench.options import Setting
from bench.results import ArmResult, Counts, Rates, StepRow, SweepPoint
from bench.workloads.workload import Workload
from jbatch.errors import ConfigError
from jbatch.host.policy import MODES

STEPS_WITH_ROWS = 1000
Say = Callable[[str], None]
SMALLEST_SWEEP = 2  # sequences: one is the arm "unbatched"


class Pass(NamedTuple):
    """What one repeat of an arm gave."""

    run: Run
    steps: list[StepRow]
    counts: Counts
    rates: Rates


@dataclasses.dataclass
class Measurement:
    """An arm at a batch size, and what it has given so far."""

    arm: Arm
    max_num_seqs: int
    passes: list[Pass] = dataclasses.field(default_factory=list)
    failed: str | None = None

    def result(self) -> ArmResult:
        """The figures of the repeat of median output throughput, among those that ended."""
        label = f"{self.arm.name}, {self.max_num_seqs} at once"
        if not self.passes:
            return ArmResult(label, self.arm.definition, not_run=self.failed or "its turn did not come")
        speeds = [ended.rates.output_throughput for ended in self.passes]
        middle = sorted(self.passes, key=lambda ended: ended.rates.output_throughput)[(len(speeds) - 1) // 2]
        return ArmResult(
            label=label,
            definition=self.arm.definition,
            max_num_seqs=self.max_num_seqs,
            counts=middle.counts,
            rates=middle.rates,
            latencies=measures.latencies(middle.run),
            repeats=tuple(speeds),
            steps=tuple(_thinned(middle.steps)),
            requests=tuple(measures.request_rows(middle.run)),
            extra={
                "least_prompt_tokens": min(ended.counts.useful_prefill_tokens for ended in self.passes),
                "most_compilations": max(ended.counts.compilations_after_warmup for ended in self.passes),
                "failed": self.failed,
            },
        )


def climb(
    subject: Subject,
    arms: Sequence[Arm],
    workload: Workload,
    setting: Setting,
    sizes: Mapping[str, int] | None = None,
    on_round: Callable[[dict[str, ArmResult]], None] = lambda results: None,
    say: Say = lambda line: None,
) -> dict[str, ArmResult]:
    """Run each arm once per repeat, in turn, so that a slow spell of the machine hits all of them.

    An arm that fails is not tried again and takes nobody along: where no repeat of it had ended, it is
    "not run: why".

    Args:
      sizes: batch size by arm; by default the subject's, and 1 for "unbatched".
      on_round: is given what there is after each repeat.
      say: is given a line after each pass.
    """
    measurements = [Measurement(arm, (sizes or {}).get(arm.name, _size(arm, subject))) for arm in arms]

    def results() -> dict[str, ArmResult]:
        return {measurement.arm.name: measurement.result() for measurement in measurements}

    total = setting.repeats * len(measurements)
    for repeat in range(setting.repeats):
        for number, measurement in enumerate(measurements, start=1 + repeat * len(measurements)):
            if measurement.failed is None:
                _attempt(subject, measurement, workload, setting, repeat)
                say(f"pass {number} of {total}: {_said(measurement)}")
        on_round(results())
    return results()


def sweep(
    subject: Subject,
    arms: Sequence[Arm],
    workload: Workload,
    setting: Setting,
    say: Say = lambda line: None,
) -> dict[str, list[SweepPoint]]:
    """Run each arm once at each batch size: what it gave there; sizes at which it fails are left out. `say`
    as for `climb`."""
    curves: dict[str, list[SweepPoint]] = {arm.name: [] for arm in arms}
    for size in sweep_sizes(subject.max_num_seqs):
        for arm in arms:
            if MODES[arm.mode].one_by_one and curves[arm.name]:
                continue
            measurement = Measurement(arm, min(size, _size(arm, subject)))
            _attempt(subject, measurement, workload, setting, 0)
            say(f"sweep: {_said(measurement)}")
            curves[arm.name] += [_sweep_point(measurement.max_num_seqs, it) for it in measurement.passes]
    return curves


def _said(measurement: Measurement) -> str:
    """What its last pass gave, in a line."""
    where = f"{measurement.arm.name}, {measurement.max_num_seqs} at once"
    if measurement.failed is not None:
        return f"{where}, failed: {measurement.failed}"
    rates = measurement.passes[-1].rates
    return f"{where}: {rates.output_throughput:,.0f} output tokens/s in {rates.duration_s:.1f} s"


def _sweep_point(size: int, ended: Pass) -> SweepPoint:
    figures = dataclasses.asdict(ended.counts) | dataclasses.asdict(ended.rates)
    figures |= measures.latencies(ended.run).to_json()
    return SweepPoint(size, *(figures[name] for name in SweepPoint._fields[1:]))


def sweep_sizes(most: int) -> list[int]:
    """The batch sizes of a sweep: powers of two below `most`, and `most`."""
    sizes = [SMALLEST_SWEEP << power for power in range(16) if SMALLEST_SWEEP << power < most]
    return [*sizes, most]


def best_sizes(curves: Mapping[str, Sequence[SweepPoint]]) -> dict[str, int]:
    """The batch size of the highest throughput, of each arm that ran."""
    best = {name: max(c, key=lambda point: point.output_throughput) for name, c in curves.items() if c}
    return {name: point.max_num_seqs for name, point in best.items()}


def offered_load(
    subject: Subject, workload: Workload, arm: Arm, load: float
) -> tuple[Workload, float, float]:
    """The workload with its arrivals rescaled to `load` times what `arm` can do when all is there at once.

    Returns it, with that capacity (requests/s, measured) and the factor that times were multiplied by.

    Raises:
      ConfigError: for a workload whose requests all arrive at once.
    """
    if workload.items[-1].arrival <= workload.items[0].arrival:
        raise ConfigError("load", load, "rescales arrivals, and these come all at once: give --request-rate")
    closed = workload.arriving([0.0] * len(workload.items))
    capacity = run_once(subject, arm, _size(arm, subject), closed, Setting()).rates.request_throughput
    span = workload.items[-1].arrival - workload.items[0].arrival
    factor = len(workload.items) / (load * capacity) / span
    scaled = workload.arriving([item.arrival * factor for item in workload.items])
    time_scale = scaled.scales["time_scale"] * factor
    scales = scaled.scales | {"time_scale": time_scale, "load": load}
    return scaled._replace(scales=scales), capacity, factor


def run_once(subject: Subject, arm: Arm, size: int, workload: Workload, setting: Setting) -> Pass:
    """Run an arm once, on a fresh engine. Raises whatever the engine raises, and RunError."""
    before = subject.num_compilations()
    engine = subject.new_engine(arm, size)
    run = drive(
        engine,
        workload,
        predicted=predicted_lens(arm, workload),
        max_concurrency=setting.max_concurrency,
        temperature=setting.temperature,
    )
    compilations = subject.num_compilations() - before
    config = engine.scheduler.config
    if config.admission.wait_full:
        run = run._replace(fill=Fill(size, config.batch_wait_timeout_s))
    steps = step_rows(run, config.shape, config.admission, subject.floor)
    counts = measures.counts(run, steps, subject.page_size, compilations)
    return Pass(run, steps, counts, measures.rates(run, steps, setting.goodput))


def _attempt(
    subject: Subject, measurement: Measurement, workload: Workload, setting: Setting, repeat: int
) -> None:
    """One pass of an arm; an error is the arm's own, and the others go on with a new model."""
    arm, size = measurement.arm, measurement.max_num_seqs
    try:
        measurement.passes.append(run_once(subject, arm, size, workload, setting))
    except Exception as error:  # of whatever kind: the other arms' results matter more
        measurement.failed = f"repeat {repeat + 1}: {type(error).__name__}: {error}"
        try:
            subject.rebuild()
        except Exception as again:  # then the other arms fail too, but what they have given stays
            measurement.failed += f"; building anew: {type(again).__name__}: {again}"


def _thinned(steps: Sequence[StepRow]) -> list[StepRow]:
    """The steps, of which only the first keep who was in them: that is more than a picture can show, and most
    of a file."""
    return [step if number < STEPS_WITH_ROWS else step._replace(rows=[]) for number, step in enumerate(steps)]


def _size(arm: Arm, subject: Subject) -> int:
    """An arm's batch size where none is given."""
    return 1 if MODES[arm.mode].one_by_one else subject.max_num_seqs


def missing_prompt_tokens(arm: ArmResult, workload: Workload) -> int:
    """Prompt tokens that the emptiest repeat did not compute: they came from a cache."""
    return max(0, workload.num_prompt_tokens - arm.extra["least_prompt_tokens"])


def ran(arms: Mapping[str, ArmResult]) -> Iterator[tuple[str, ArmResult]]:
    """The arms that have figures."""
    return ((name, arm) for name, arm in arms.items() if arm.not_run is None)
