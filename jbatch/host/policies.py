"""The policies that have names. Without ageing, a policy can starve a request: others may always go first."""

from __future__ import annotations

import math
from typing import NamedTuple

from jbatch.config import PolicyName
from jbatch.host.limits import SchedulerView
from jbatch.host.policy import Policy
from jbatch.host.request import Key, Request


def fcfs(request: Request, now: float, view: SchedulerView) -> Key:
    """First come, first served."""
    return (request.arrival,)


def sjf(request: Request, now: float, view: SchedulerView) -> Key:
    """Shortest job first, by expected output length: low mean latency. Long ones may starve."""
    return (request.expected_len, request.arrival)


def ljf(request: Request, now: float, view: SchedulerView) -> Key:
    """Longest job first: a short tail at the end of a batch job. Short ones may starve."""
    return (-request.expected_len, request.arrival)


def priority(request: Request, now: float, view: SchedulerView) -> Key:
    """Lower `priority` first, as in vLLM; then first come, first served."""
    return (request.priority, request.arrival)


def deadline(request: Request, now: float, view: SchedulerView) -> Key:
    """Earliest deadline first: of the request's own deadline and its limits of latency, the first to come.
    Those without any come last, and may starve."""
    return (earliest_deadline(request), request.arrival)


def earliest_deadline(request: Request) -> float:
    """In seconds on the engine's clock; infinity where there is none. A limit of the time per output token
    sets one, too: for the whole answer, at its expected length."""
    moments = [math.inf if request.deadline is None else request.deadline]
    limits = request.limits
    if limits.ttft_ms is not None:
        moments.append(request.arrival + limits.ttft_ms / 1e3)
    if limits.e2el_ms is not None:
        moments.append(request.arrival + limits.e2el_ms / 1e3)
    if limits.ttft_ms is not None and limits.tpot_ms is not None:
        wanted_ms = limits.ttft_ms + limits.tpot_ms * (request.expected_len - 1)
        moments.append(request.arrival + wanted_ms / 1e3)
    return min(moments)


def fair(request: Request, now: float, view: SchedulerView) -> Key:
    """The user who was served least first, by tokens (the virtual token counter of Sheng et al. 2024): one
    user's many requests do not delay another's few. Requests without `user` are one user's."""
    return (view.served.get(request.user, 0.0), request.arrival)


class Weights(NamedTuple):
    """How much each part of the adaptive policy's score counts."""

    priority: float = 10.0  # for each step of priority downwards: lower is more urgent
    urgency: float = 10.0  # for the share of the time until its deadline that has passed
    length: float = 0.01  # for each output token fewer than `reference_len` that is expected
    reference_len: float = 500.0
    balance: float = 5.0  # for being shorter than the mean of what runs
    waiting: float = 0.1  # for each second of waiting


DEFAULT_WEIGHTS = Weights()


def score(request: Request, now: float, view: SchedulerView, weights: Weights) -> float:
    """The higher, the sooner. Where requests are scored with priorities that count upwards, as in the
    heuristic that this generalises, `priority=-p` gives the same score."""
    total = -weights.priority * request.priority
    total += weights.length * (weights.reference_len - request.expected_len)
    if request.expected_len < view.mean_expected_len:
        total += weights.balance
    until = earliest_deadline(request)
    if until < math.inf:
        allowed = max(until - request.arrival, 1e-3)
        total += weights.urgency * min(2.0, max(0.0, (now - request.arrival) / allowed))
    return total + weights.waiting * max(0.0, now - request.arrival)


def adaptive(weights: Weights = DEFAULT_WEIGHTS) -> Policy:
    """By priority or urgency, expected length, balance with what runs, and waiting, each with its weight."""

    def adaptive(request: Request, now: float, view: SchedulerView) -> Key:
        return (-score(request, now, view, weights), request.arrival)

    return Policy(adaptive, ageing=True)


POLICIES: dict[PolicyName, Policy] = {
    "fcfs": Policy(fcfs, rerank_steps=0),
    "sjf": Policy(sjf, rerank_steps=0),
    "ljf": Policy(ljf, rerank_steps=0),
    "priority": Policy(priority, rerank_steps=0, ageing=True),
    "deadline": Policy(deadline, rerank_steps=0),
    "fair": Policy(fair),
    "adaptive": adaptive(),
}
