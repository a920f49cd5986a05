"""The budgets of a step: constants by default, or a user's function of what the scheduler holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class SchedulerView(NamedTuple):
    """What a limits function may look at."""

    now: float
    num_waiting: int
    num_running: int
    num_free_pages: int


class StepLimits(NamedTuple):
    """The budgets of one step."""

    max_num_batched_tokens: int
    max_num_seqs: int


Limits = Callable[[SchedulerView], StepLimits]
