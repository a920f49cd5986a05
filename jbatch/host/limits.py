"""The budgets of a step: constants by default, or a user's function of what the scheduler holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jbatch.errors import ConfigError, UserFunctionError

MAX_PADDING = 0.2  # of the prompt tokens of a step that decodes, too


class SchedulerView(NamedTuple):
    """What a policy and a limits function may look at."""

    now: float  # seconds, on the engine's clock
    num_waiting: int
    num_running: int
    num_free_pages: int
    mean_expected_len: float = 0.0  # output tokens that running requests are expected to get, each
    served: Mapping[str | None, float] = MappingProxyType({})  # tokens by user, once any request names one


class Company(NamedTuple):
    """When a few prompt tokens wait for others to share their step. A step with prompts costs more than one
    without, however few they are.

    Beside decoding sequences, fewer than `tokens` wait, for at most `steps` steps.
    """

    tokens: int = 0
    steps: int = 0


class StepLimits(NamedTuple):
    """The budgets of one step."""

    max_num_batched_tokens: int  # of prompts: decoding sequences are besides
    max_num_seqs: int
    company: Company = Company()


def fill(num_tokens: int, sizes: Sequence[int], most: int, least: int = 1) -> int:
    """Prompt tokens to compute beside decoding sequences, of `num_tokens` that wait.

    All, unless much of the step would be padding. Then as many as fill a smaller one: the next step comes
    anyway, and takes the rest.

    Args:
      sizes: tokens of the steps that are compiled, ascending.
      most: the budget.
      least: with less, the first in line might get nothing.
    """
    wanted = min(num_tokens, most)
    size = next((size for size in sizes if size >= wanted), sizes[-1])
    full = max((size for size in sizes if least <= size <= wanted), default=0)
    return full if full and size - wanted > MAX_PADDING * size else most


Limits = Callable[[SchedulerView], StepLimits]


def check_limits(limits: Any) -> Limits:
    """A limits function. Raises ConfigError for what cannot be called with a view."""
    name = getattr(limits, "__name__", type(limits).__name__)
    if not callable(limits):
        raise ConfigError("limits", limits, "must be a function of a SchedulerView that gives StepLimits")
    checked: Limits = limits
    try:
        signature = inspect.signature(limits)
    except (TypeError, ValueError):  # a built-in tells nothing of its arguments
        return checked
    try:
        signature.bind(None)
    except TypeError:
        raise ConfigError("limits", name, f"it is called as {name}(view), and takes {signature}") from None
    return checked


def choose(limits: Limits, view: SchedulerView, least: int = 1) -> StepLimits:
    """A step's budgets. Raises UserFunctionError for a function that fails, gives none, or gives fewer tokens
    than `least` but more than 0, with which no long prompt would ever begin."""
    try:
        chosen = limits(view)
    except Exception as error:  # whatever a user's function raises
        raise UserFunctionError("limits", limits, f"it fails: {type(error).__name__}: {error}") from error
    if not isinstance(chosen, StepLimits) or not _are_counts(chosen):
        raise UserFunctionError(
            "limits", limits, f"it must give StepLimits of integers of at least 0, and gave {chosen!r:.80}"
        )
    if 0 < chosen.max_num_batched_tokens < least:
        raise UserFunctionError(
            "limits",
            limits,
            f"it gave max_num_batched_tokens={chosen.max_num_batched_tokens}: "
            f"must be 0, or at least {least} (a page)",
        )
    return chosen


def _are_counts(limits: StepLimits) -> bool:
    tokens, num_seqs, company = limits
    integers = isinstance(tokens, int) and isinstance(num_seqs, int)
    return integers and isinstance(company, Company) and min(tokens, num_seqs) >= 0
