"""Who runs first (a policy is a sort key) and when requests may join (admission is a rule)."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from jbatch.config import ModeName, check_range
from jbatch.errors import ConfigError, RequestError, UserFunctionError
from jbatch.host.limits import SchedulerView
from jbatch.host.request import Key, Request, Sequence

RERANK_STEPS = 16  # of a function whose keys may change: it is asked again after as many steps

# The smallest key is admitted first; ties by order of arrival.
KeyFunction = Callable[[Request, float, SchedulerView], Key]


class Policy(NamedTuple):
    """Who is admitted first.

    Attributes:
      key: of (request, now, view): what waiting requests are sorted by, the smallest first. `now` is in
        seconds, on the engine's clock.
      rerank_steps: steps after which keys are asked for again; 0 where they never change.
      ageing: let the one that came first go before its turn, as often as it takes to have no one wait much
        more than twice as long as in order of arrival (see `waiting.Ageing`).
    """

    key: KeyFunction
    rerank_steps: int = RERANK_STEPS
    ageing: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return getattr(self.key, "__name__", type(self.key).__name__)


def policy_of(policy: Policy | KeyFunction) -> Policy:
    """A policy, or a function that is made one, whose keys are taken to change.

    Raises:
      ConfigError: for a function that does not take (request, now, view), and for fields that are none.
    """
    if isinstance(policy, Policy):
        if not callable(policy.key):
            raise ConfigError("policy", policy.key, "its key must be a function of (request, now, view)")
        check_range("rerank_steps", policy.rerank_steps, 0, 2**31 - 1)
        if not isinstance(policy.ageing, bool):
            raise ConfigError("ageing", policy.ageing, "must be true or false")
        return policy
    made = Policy(policy)
    try:
        signature = inspect.signature(policy)
    except (TypeError, ValueError):  # a built-in tells nothing of its arguments
        return made
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise ConfigError(
            "policy",
            made.name,
            f"it is called as {made.name}(request, now, view), and takes {signature}",
        ) from None
    return made


def key_of(policy: Policy, request: Request, view: SchedulerView) -> Key:
    """A request's key. Raises RequestError where a policy fails, or gives what cannot be sorted: of this
    request alone, for it is asked before the request is queued."""
    name = policy.name
    try:
        key = policy.key(request, view.now, view)
        if (sortable := _sortable(key)) is not None:
            return sortable
    except RequestError:
        raise
    except Exception as error:  # whatever a user's function raises
        reason = f"it fails for this request: {type(error).__name__}: {error}"
        raise RequestError("policy", name, reason, code="policy_failed") from error
    reason = f"it must give a tuple of numbers, none of them NaN, and gave {key!r:.80} for this request"
    raise RequestError("policy", name, reason, code="policy_failed")


def new_key_of(policy: Policy, request: Request, view: SchedulerView) -> Key:
    """The key of a request that waits or runs. Raises UserFunctionError where it can no longer be told."""
    try:
        key = policy.key(request, view.now, view)
        if (sortable := _sortable(key)) is not None:
            return sortable
    except Exception as error:  # whatever a user's function raises
        raise UserFunctionError(
            "policy", policy.key, f"it fails for {request.request_id!r}: {type(error).__name__}: {error}"
        ) from error
    raise UserFunctionError(
        "policy",
        policy.key,
        f"it must give a tuple of numbers, none of them NaN, and gave {key!r:.80} for {request.request_id!r}",
    )


def _sortable(key: Any) -> Key | None:
    """A key as Python's numbers; None for what is none."""
    if not isinstance(key, tuple) or not all(isinstance(part, numbers.Real) for part in key):
        return None
    if any(math.isnan(part) for part in key):
        return None
    return tuple(part if type(part) is int else float(part) for part in key)


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
