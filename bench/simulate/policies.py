"""The policy lab: each policy with each predictor on one simulated workload, where requests have to queue."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.ladder.arms import Arm
from bench.measure.drive import Run, drive
from bench.measure.measures import request_rows
from bench.results import RequestRow
from bench.simulate.subject import Simulated, SimulatedSubject
from bench.workloads.workload import Workload
from jbatch.config import AdmissionName
from jbatch.engine.intake import ScheduleFields
from jbatch.errors import ConfigError
from jbatch.host.lengths.find import BY_NAME, find_predictor
from jbatch.host.lengths.prediction import Predictor
from jbatch.host.lengths.predictors import Oracle
from jbatch.host.policies import POLICIES

NOISE_SIGMA = 0.5
BY_LENGTH = ("sjf", "ljf", "adaptive")  # policies that go by expected lengths
TIGHT, LOOSE = 3.0, 10.0  # times the time that an answer takes once it runs
NUM_USERS = 4


class Outcome(NamedTuple):
    """One policy with one predictor. Times are seconds of the simulated clock.

    Attributes:
      met: share of the requests with a limit that kept it.
      makespan: without the time in which nothing was asked for.
      fairness: Jain's index over users of the tokens per second that each got while a request of its waited;
        1: all got as many.
      regret: mean latency over that of the same policy with an oracle, less 1; None where it needs none.
      queued: share of the steps in which some request waited.
    """

    policy: str
    predictor: str
    admission: AdmissionName
    makespan: float
    mean_e2el: float
    p50_e2el: float
    p99_e2el: float
    mean_ttft: float
    met: float
    fairness: float
    num_preempted: int
    recomputed: int
    queued: float
    regret: float | None = None


def run_lab(
    sim: Simulated,
    workload: Workload,
    policies: Iterable[str],
    predictors: Sequence[str],
    admissions: Sequence[AdmissionName],
    budget: int,
    seed: int,
) -> list[Outcome]:
    """An outcome for each policy and admission, of those that go by lengths for each predictor.

    Args:
      budget: tokens that each request may generate, at least those that it wants: what a policy knows without
        a predictor.
    """
    lengths = {number: item.output_len for number, item in enumerate(workload.items)}
    subject = SimulatedSubject(sim, lengths, seed)
    token_s = _token_s(subject, workload, budget)
    wishes = wishes_of(workload, token_s, seed)
    outcomes: list[Outcome] = []
    for policy, admission in itertools.product(policies, admissions):
        config = dataclasses.replace(sim.config, admission=admission)
        subject = SimulatedSubject(sim._replace(config=config), lengths, seed)
        by_length = policy in BY_LENGTH or admission == "forecast"
        for name in predictors if by_length else ("none",):
            predictor = predictor_of(name, workload, seed)
            engine = subject.new_engine(_arm(policy), subject.max_num_seqs, predictor)
            run = drive(engine, workload, budget=budget, wishes=wishes)
            outcomes.append(outcome_of(policy, name, run, wishes)._replace(admission=admission))
    return [_with_regret(outcome, outcomes) for outcome in outcomes]


def predictor_of(name: str, workload: Workload, seed: int) -> Predictor | None:
    """By name: none, oracle, noisy, or what `predictor=` of LLM takes."""
    if name == "none":
        return None
    if name in ("oracle", "noisy"):
        lengths = {str(number): item.output_len for number, item in enumerate(workload.items)}
        return Oracle(lengths, NOISE_SIGMA if name == "noisy" else 0.0, seed)
    if name not in BY_NAME and not Path(name).is_file():
        known = ", ".join(("none", "oracle", "noisy", *BY_NAME))
        raise ConfigError("predictor", name, f"must be {known} or a file of a trained one")
    return find_predictor(name)


def wishes_of(workload: Workload, token_s: float, seed: int) -> list[ScheduleFields]:
    """A third of the requests have tight limits of their latency, a third loose ones; one in four is of
    priority -1; one of four users sends half of the requests."""
    rng = np.random.default_rng([seed, len(workload.items)])
    wishes: list[ScheduleFields] = []
    for item in workload.items:
        factor = (TIGHT, LOOSE, None)[rng.integers(3)]
        user = f"user {0 if rng.random() < 0.5 else rng.integers(1, NUM_USERS)}"
        wish: ScheduleFields = {"user": user, "priority": -int(rng.random() < 0.25)}
        if factor is not None:
            wish["e2el_ms"] = 1e3 * factor * token_s * item.output_len
        wishes.append(wish)
    return wishes


def outcome_of(policy: str, predictor: str, run: Run, wishes: Sequence[ScheduleFields]) -> Outcome:
    """What came of a run."""
    rows = request_rows(run)
    e2el = np.array([row.end - row.arrival for row in rows])
    limits = np.array([wish.get("e2el_ms") or np.inf for wish in wishes]) / 1e3
    limited = np.isfinite(limits)
    records = [event.record for event in run.events if event.record is not None]
    return Outcome(
        policy,
        predictor,
        "optimistic",
        makespan=run.duration_s - run.idle_s,
        mean_e2el=float(e2el.mean()),
        p50_e2el=float(np.percentile(e2el, 50)),
        p99_e2el=float(np.percentile(e2el, 99)),
        mean_ttft=statistics.mean(row.first_token - row.arrival for row in rows),
        met=float((e2el <= limits)[limited].mean()) if limited.any() else 1.0,
        fairness=_jain(_rates(rows, run.token_times, [wish.get("user") for wish in wishes])),
        num_preempted=run.summary.num_preempted,
        recomputed=run.summary.recomputed,
        queued=sum(record.num_waiting > 0 for record in records) / len(records),
    )


def _token_s(subject: SimulatedSubject, workload: Workload, budget: int) -> float:
    """Seconds per output token of a request that runs, in order of arrival: the median."""
    run = drive(subject.new_engine(_arm("fcfs"), subject.max_num_seqs), workload, budget=budget)
    rows = request_rows(run)
    return statistics.median((row.end - row.first_token) / max(1, row.output_len - 1) for row in rows)


def _arm(policy: str) -> Arm:
    if policy not in POLICIES:
        raise ConfigError("policy", policy, f"must be one of {', '.join(POLICIES)}")
    return Arm(policy, "continuous", policy, policy)  # type: ignore[arg-type]


def _rates(
    rows: Sequence[RequestRow], token_times: Sequence[Sequence[float]], users: Sequence[str | None]
) -> list[float]:
    """Each user's tokens per second, of the time in which at least one of its requests waited."""
    by_user: dict[str | None, list[int]] = defaultdict(list)
    for number, user in enumerate(users):
        by_user[user].append(number)
    rates = []
    for numbers in by_user.values():
        begins, ends = _union(sorted((rows[n].arrival, rows[n].first_token) for n in numbers))
        times = np.array([moment for n in numbers for moment in token_times[n]])
        idx = np.searchsorted(begins, times, side="left") - 1
        waited = (idx >= 0) & (times <= ends[np.maximum(idx, 0)])
        rates.append(float(waited.sum() / max(1e-9, (ends - begins).sum())))
    return rates


def _union(spans: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends of spans, sorted by their begin, once those that touch are one."""
    merged: list[list[float]] = []
    for begin, end in spans:
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return np.array([begin for begin, _ in merged]), np.array([end for _, end in merged])


def _jain(values: Sequence[float]) -> float:
    squares = sum(value**2 for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _with_regret(outcome: Outcome, outcomes: Sequence[Outcome]) -> Outcome:
    same = outcome.policy, "oracle", outcome.admission
    known = [o for o in outcomes if o[:3] == same]
    return outcome._replace(regret=outcome.mean_e2el / known[0].mean_e2el - 1 if known else None)
