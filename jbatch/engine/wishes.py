"""What a policy may go by, as callers of LLM and lines of jobs say it."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypedDict

from jbatch.errors import check_option_names
from jbatch.sampling_params import SamplingParams, check_number

MAX_DEADLINE_S = 1e9


class WishLists(TypedDict, total=False):
    """Of each prompt, in their order. None for a prompt is as good as missing.

    Attributes:
      priority: for policies "priority" and "adaptive"; lower runs first. 0 where it is missing.
      deadline: seconds from now in which the answer is wanted.
      predicted_len: output tokens that are expected, for policies that go by lengths.
      user: whose request it is, for policy "fair".
      ttft_ms, tpot_ms, e2el_ms: latencies to keep, for policies "deadline" and "adaptive".
    """

    priority: Sequence[int | None] | None
    deadline: Sequence[float | None] | None
    predicted_len: Sequence[int | None] | None
    user: Sequence[str | None] | None
    ttft_ms: Sequence[float | None] | None
    tpot_ms: Sequence[float | None] | None
    e2el_ms: Sequence[float | None] | None


NO_LISTS = (str, numbers.Number, Mapping, Set)  # whose order is not that of the prompts
WISHES = tuple(WishLists.__annotations__)


def wishes_of_each(lists: Mapping[str, Any], num_prompts: int) -> list[dict[str, Any]]:
    """The wishes of each prompt.

    Raises:
      TypeError: for a name that is none, suggesting the closest, and for what is no list.
      ValueError: for a list of another length.
    """
    check_option_names(lists, WISHES, "this call", SamplingParams.__dataclass_fields__)
    wishes: list[dict[str, Any]] = [{} for _ in range(num_prompts)]
    for name, values in lists.items():
        if values is None:
            continue
        if isinstance(values, NO_LISTS) or not isinstance(values, Iterable):
            raise TypeError(f"{name}={values!r}: give a list of one for each of {num_prompts} prompts")
        listed = list(values)
        if len(listed) != num_prompts:
            raise ValueError(f"{len(listed)} of {name} for {num_prompts} prompts: give one for each")
        for own, value in zip(wishes, listed, strict=True):
            if value is not None:
                own[name] = value
    return wishes


def schedule_fields(wishes: Mapping[str, Any], now: float) -> Any:
    """As `Engine.add_request` takes them. Raises RequestError for a deadline that is none."""
    fields = dict(wishes)
    if "deadline" in fields:
        check_number("deadline", fields["deadline"], 0.0, MAX_DEADLINE_S)
        fields["deadline"] += now
    return fields
