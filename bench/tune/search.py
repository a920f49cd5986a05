"""The search: one option after the other, each of its values with the best of all others, until none helps.

It is coordinate descent: it finds no better than a neighbour of what it finds, and every step of it can be
followed in the table. It draws nothing at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bench.tune.aim import Aim, Figures
from bench.tune.candidate import Candidate

MAX_ROUNDS = 4

Evaluate = Callable[[Candidate], Figures | None]  # None: the options do not go together


class Search(NamedTuple):
    """What was found.

    Attributes:
      tried: what came of each candidate, in the order of trial.
      complete: whether there was time for all.
    """

    best: Candidate
    tried: dict[Candidate, Figures]
    complete: bool


def search(
    evaluate: Evaluate,
    default: Candidate,
    axes: Mapping[str, Sequence[Any]],
    aim: Aim,
    has_time: Callable[[], bool],
) -> Search:
    """The best candidate. Ties go to the default, and then to what was tried first.

    Raises ValueError where the default does not run.
    """
    first = evaluate(default)
    if first is None:
        raise ValueError("the default options do not go together")
    tried: dict[Candidate, Figures | None] = {default: first}
    best = default

    def known() -> dict[Candidate, Figures]:
        return {candidate: figures for candidate, figures in tried.items() if figures is not None}

    for _ in range(MAX_ROUNDS):
        before = best
        for name, values in axes.items():
            for value in values:
                candidate = best._replace(**{name: value})
                if candidate in tried:
                    continue
                if not has_time():
                    return Search(best, known(), complete=False)
                tried[candidate] = evaluate(candidate)
            best = _best(best, name, values, known(), first, aim)
        if best == before:
            break
    return Search(best, known(), complete=True)


def _best(
    best: Candidate,
    name: str,
    values: Sequence[Any],
    tried: Mapping[Candidate, Figures],
    default: Figures,
    aim: Aim,
) -> Candidate:
    """The best along one axis."""
    for candidate in [best._replace(**{name: value}) for value in values]:
        if candidate in tried and aim.improves(tried[candidate], tried[best], default):
            best = candidate
    return best


def frontier(tried: Mapping[Candidate, Figures]) -> list[Candidate]:
    """Candidates that no other beats in throughput and in p99 TTFT at once, by throughput, highest first."""
    order = sorted(tried, key=lambda c: (-tried[c].output_throughput, tried[c].p99_ttft))
    found: list[Candidate] = []
    least = float("inf")
    for candidate in order:
        if tried[candidate].p99_ttft < least:
            least = tried[candidate].p99_ttft
            found.append(candidate)
    return found
