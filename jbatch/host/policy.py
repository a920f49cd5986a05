"""Who runs first (a policy is a sort key) and when requests may join (admission is a rule)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection
from typing import NamedTuple

from jbatch.config import ModeName, PolicyName
from jbatch.errors import RequestError
from jbatch.host.request import Key, Request, Sequence

# The smallest key is admitted first; ties by order of arrival.
Policy = Callable[[Request], Key]


def _expected_len(request: Request) -> int:
    return request.max_tokens if request.predicted_len is None else request.predicted_len


def fcfs(request: Request) -> tuple[float, ...]:
    """First come, first served."""
    return (request.arrival,)


def sjf(request: Request) -> tuple[float, ...]:
    """Shortest job first, by predicted output length (max_tokens where none is given): low mean latency."""
    return (_expected_len(request), request.arrival)


def ljf(request: Request) -> tuple[float, ...]:
    """Longest job first: a short tail at the end of a batch job."""
    return (-_expected_len(request), request.arrival)


def priority(request: Request) -> tuple[float, ...]:
    """Lower `priority` first, as in vLLM; then first come, first served."""
    return (request.priority, request.arrival)


def key_of(policy: Policy, request: Request) -> Key:
    """A request's key. Raises RequestError where a policy fails, or gives what cannot be sorted: of this
    request alone, for it is asked before the request is queued, and never again."""
    name = getattr(policy, "__name__", type(policy).__name__)
    try:
        key = policy(request)
        numeric = isinstance(key, tuple) and all(isinstance(part, numbers.Real) for part in key)
        if numeric and not any(math.isnan(part) for part in key):
            return tuple(part if type(part) is int else float(part) for part in key)
    except RequestError:
        raise
    except Exception as error:  # whatever a user's function raises
        reason = f"it fails for this request: {type(error).__name__}: {error}"
        raise RequestError("policy", name, reason, code="policy_failed") from error
    reason = f"it must give a tuple of numbers, none of them NaN, and gave {key!r:.80} for this request"
    raise RequestError("policy", name, reason, code="policy_failed")


POLICIES: dict[PolicyName, Policy] = {"fcfs": fcfs, "sjf": sjf, "ljf": ljf, "priority": priority}


class Admission(NamedTuple):
    """When waiting requests may join the running ones."""

    refill: bool  # join at every step; else only when nothing runs
    one_by_one: bool = False  # at most one request runs
    hold_finished: bool = False  # finished rows keep computing until the batch's longest has ended
    wait_full: bool = False  # a batch starts when it is full, or its oldest has waited for long enough


MODES: dict[ModeName, Admission] = {
    "continuous": Admission(refill=True),
    "static": Admission(refill=False),
    "static-full": Admission(refill=False, wait_full=True),
    "static-padded": Admission(refill=False, hold_finished=True),
    "unbatched": Admission(refill=False, one_by_one=True),
}


def may_start(waiting: Collection[Sequence], batch_size: int, now: float, timeout_s: float) -> bool:
    """Whether a batch that waits to be full starts from those that wait, while nothing runs.

    It does when `batch_size` wait, when the oldest has waited `timeout_s` seconds since its arrival, and for
    what was preempted: that has had its wait. An arrival later than `now` is not of this clock: no wait
    could be told from it, so there is none.
    """
    if len(waiting) >= batch_size or any(sequence.num_preemptions for sequence in waiting):
        return True
    waited = now - min((sequence.request.arrival for sequence in waiting), default=now)
    return not 0 <= waited < timeout_s
