"""Builds, checks and times the arms of a comparison: those that agree with jbatch run in turn."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.compare.arms import REFERENCE, Arm
from bench.compare.cross_check import NEAR_TIE, LogitGap, cross_check
from bench.compare.ready import Outcome, ReadyArm
from bench.compare.stage import Stage
from bench.measure import measures
from bench.measure.account import step_rows
from bench.results import ArmResult, Rates
from bench.workloads.workload import Workload
from jbatch.errors import ConfigError
from jbatch.host.policy import MODES


@dataclasses.dataclass
class Measurement:
    """An arm, and what it has given so far."""

    arm: Arm
    ready: ReadyArm | None = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    not_run: str | None = None

    def attempt(self, what: str, do: Callable[[], None]) -> None:
        """Do something; after an error the arm is "not run: why", and takes nobody along."""
        if self.not_run is not None:
            return
        try:
            do()
        except Exception as error:  # of whatever kind: the other arms' results matter more
            name = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            self.not_run = f"{what}: {name}{error}"
            self.outcomes = []
            self.close()

    def close(self) -> None:
        """Let go of what the arm has built."""
        ready, self.ready = self.ready, None
        if ready is not None:
            try:
                ready.close()
            except Exception as error:  # it has failed already, or is done
                self.about["close_error"] = str(error)


class Checker:
    """Holds an arm's tokens against those of the reference, which comes first."""

    def __init__(self, stage: Stage):
        config, runner = stage.subject.llm.model_config, stage.subject.llm.runner
        self._prompts = [item.prompt_token_ids for item in stage.workload.items]
        self._gap = LogitGap(config, runner.params, stage.workload.longest)
        self._tolerance = NEAR_TIE[config.dtype]
        self.reference: list[list[int]] = []

    def check(self, tokens: list[list[int]]) -> dict[str, Any]:
        """How the tokens compare, as a result file has it. Raises Disagreement."""
        return cross_check(self._prompts, self.reference, tokens, self._gap, self._tolerance)._asdict()


def measure(
    stage: Stage, measurements: Sequence[Measurement], repeats: int, on_news: Callable[[], None]
) -> None:
    """Build and check each arm, and run those that agree in turn. Raises what jbatch's own arm raises.

    Args:
      on_news: is called when an arm is built, or is not, and after each repeat.
    """
    checker = Checker(stage)
    for measurement in measurements:
        build = functools.partial(_build, stage, measurement, checker)
        if measurement.arm.name == REFERENCE:
            build()  # without it nothing can be compared: its error is the command's
        else:
            measurement.attempt("not built, or not checked", build)
        on_news()
    for repeat in range(repeats):
        for measurement in measurements:
            measurement.attempt(f"repeat {repeat + 1}", functools.partial(_repeat, measurement, checker))
        on_news()


def _build(stage: Stage, measurement: Measurement, checker: Checker) -> None:
    """Build an arm, and check the tokens of its first pass; the reference's are recorded."""
    begin = time.perf_counter()
    measurement.ready = ready = measurement.arm.build(stage)
    measurement.about["build_s"] = time.perf_counter() - begin
    outcome = ready.run()
    measurement.about |= {"warm_up_s": time.perf_counter() - begin, **ready.describe()}
    if measurement.arm.name == REFERENCE:
        assert outcome.run is not None
        checker.reference = outcome.tokens
        stage.record(outcome.run)
    measurement.about["check"] = checker.check(outcome.tokens)


def _repeat(measurement: Measurement, checker: Checker) -> None:
    """Run an arm once more, and check its tokens."""
    assert measurement.ready is not None
    outcome = measurement.ready.run()
    checker.check(outcome.tokens)
    measurement.outcomes.append(outcome._replace(tokens=[]))


def result(measurement: Measurement, stage: Stage) -> ArmResult:
    """An arm's figures, of the repeat of median duration; or why there are none."""
    arm, outcomes = measurement.arm, measurement.outcomes
    if measurement.not_run is not None or not outcomes:
        return ArmResult(arm.name, arm.definition, not_run=measurement.not_run or _cut_off(measurement))
    middle = sorted(outcomes, key=lambda outcome: -outcome.duration_s)[(len(outcomes) - 1) // 2]
    shown = ArmResult(
        label=f"{arm.name}: {measurement.about['attention']}",
        definition=arm.definition,
        max_num_seqs=stage.subject.max_num_seqs,
        rates=_rates(stage.workload, middle.duration_s),
        repeats=tuple(stage.workload.num_output_tokens / outcome.duration_s for outcome in outcomes),
        extra=measurement.about,
    )
    if middle.run is None:
        return shown
    steps = step_rows(middle.run, stage.shape, MODES["continuous"])
    return dataclasses.replace(
        shown,
        counts=measures.counts(middle.run, steps, stage.subject.page_size, 0),
        rates=measures.rates(middle.run, steps),
        latencies=measures.latencies(middle.run),
        steps=tuple(steps),
        requests=tuple(measures.request_rows(middle.run)),
    )


def _cut_off(measurement: Measurement) -> str:
    """Why an arm that did not fail has no figures."""
    if "check" not in measurement.about:
        return "the run was cut off before it was built and checked"
    check = measurement.about["check"]
    return (
        f"the run was cut off before it was timed; {check['equal']} of {check['requests']} requests had the "
        f"same tokens, {check['near_ties']} parted at a near-tie"
    )


def _rates(workload: Workload, duration_s: float) -> Rates:
    """The rates of a pass of which only the duration is known."""
    return Rates(
        duration_s=duration_s,
        idle_s=0.0,
        request_throughput=len(workload.items) / duration_s,
        output_throughput=workload.num_output_tokens / duration_s,
        total_token_throughput=(workload.num_prompt_tokens + workload.num_output_tokens) / duration_s,
        request_goodput=None,
        device_busy_share=None,
        floor_share=None,
    )
