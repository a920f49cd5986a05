"""Which replica a request goes to: of those that have room, the one that would be soonest through with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jbatch.engine.engine import Engine
from jbatch.engine.placed import Placed, Placements
from jbatch.host.router import Predicted, Router

ROOM = 2  # times the sequences that run at once: what a replica has, so that no slot waits for the next one
MANY_STEPS = 16  # after which a replica's speed is known
ROUTER: Router = Predicted()  # it keeps nothing


def choose(
    placed: Placed, engines: Sequence[Engine], placements: Placements, there: Iterable[int]
) -> int | None:
    """One of those that are `there`; None where none of them has room."""
    with_room = [idx for idx in there if placements.num_samples(idx) < ROOM * engines[idx].num_rows]
    if not with_room:
        return None
    speeds = _speeds(engines)
    loads = [placements.load(idx, speeds[idx]) for idx in with_room]
    return with_room[ROUTER.route(placed.request, loads)]


def _speeds(engines: Sequence[Engine]) -> list[float]:
    """Tokens that each computes in a second of its device; all alike until they are known."""
    summaries = [engine.summary for engine in engines]
    if any(each.num_steps < MANY_STEPS or each.device_s <= 0 for each in summaries):
        return [1.0] * len(summaries)
    return [
        max(1.0, each.useful_prefill_tokens + each.useful_slot_steps) / each.device_s for each in summaries
    ]
