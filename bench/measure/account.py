"""From a pass to its steps: what each computed, what lay in the cache, and what it takes at least.

Sequences are replayed from the plans alone. A sequence's number is that of its request, since a fresh
scheduler counts them as they are added.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.measure.drive import Event, Run
from bench.measure.floor import Floor
from bench.results import StepRow
from jbatch.host.metrics import StepRecord
from jbatch.host.plan import StepPlan
from jbatch.host.policy import Admission
from jbatch.seam.bucket import room_of
from jbatch.seam.shape import StateShape


class Replay:
    """Which sequences hold pages, and for how many tokens.

    Where requests join at every step, pages are given back once a sequence's last token is planned; in a
    batch when its result is there, and with `hold_finished` when all have ended.
    """

    def __init__(self, output_lens: Sequence[int], admission: Admission):
        self.held: dict[int, int] = {}  # sequence -> tokens in the cache, those of launched steps included
        self._unplanned = list(output_lens)  # tokens that no step was launched for
        self._left = list(output_lens)  # tokens that are still to come
        self._admission = admission

    def launch(self, plan: StepPlan) -> None:
        for seq_id in plan.preempted:
            self.held.pop(seq_id, None)
        for seq_id in _active(plan):
            self.held[seq_id] += 1
        for chunk in plan.chunks:
            self.held[chunk.seq_id] = chunk.end

    def launched(self, plan: StepPlan) -> None:
        """What is given back as soon as the step is under way."""
        for seq_id in (*_active(plan), *_begun(plan)):
            self._unplanned[seq_id] -= 1
            if self._admission.refill and not self._unplanned[seq_id]:
                del self.held[seq_id]

    def take_in(self, plan: StepPlan) -> None:
        """A step's result: a token for each draw, but of rows that are held."""
        for seq_id in (*_active(plan), *_begun(plan)):
            self._left[seq_id] -= 1
        if not self._admission.hold_finished or all(self._left[seq_id] == 0 for seq_id in self.held):
            for seq_id in [seq_id for seq_id in self.held if self._left[seq_id] == 0]:
                del self.held[seq_id]

    @property
    def num_tokens(self) -> int:
        return sum(self.held.values())

    def num_pages(self, page_size: int) -> int:
        return sum(-(-tokens // page_size) for tokens in self.held.values())


def step_rows(run: Run, shape: StateShape, admission: Admission, floor: Floor | None = None) -> list[StepRow]:
    """One row per step of an engine whose state has this shape.

    Pages and tokens in the cache are counted when the step's result had been taken in: then the next step, if
    any, has been launched, and what ended has given its pages back.
    """
    replay = Replay([item.output_len for item in run.workload.items], admission)
    waiting: dict[int, tuple[StepPlan, float | None]] = {}
    rows = []
    for event in run.events:
        if event.plan is not None:
            replay.launch(event.plan)
            least = None if floor is None else _floor_s(event.plan, replay, floor)
            waiting[event.plan.step_idx] = event.plan, least
            replay.launched(event.plan)
        if event.record is not None:
            plan, least = waiting.pop(event.record.step_idx)
            replay.take_in(plan)
            rows.append(_row(event, event.record, plan, replay, shape, least))
    return rows


def _row(
    event: Event, record: StepRecord, plan: StepPlan, replay: Replay, shape: StateShape, floor_s: float | None
) -> StepRow:
    return StepRow(
        kind=record.kind,
        slots=record.slots + room_of(plan.bucket, shape).chunks,
        slots_used=record.slots_used + len(plan.chunks),
        pages_used=replay.num_pages(shape.page_size),
        device_s=record.device_s,
        t=event.t,
        floor_s=floor_s,
        computed=record.computed,
        useful=record.useful,
        padded=record.padded,
        wasted=record.wasted,
        recomputed=record.recomputed,
        kv_tokens=replay.num_tokens,
        rows=rows_of(plan),
        pages_contiguous=record.num_running * shape.pages_per_seq,
        output_tokens=record.output_tokens,
    )


def rows_of(plan: StepPlan) -> list[list[int]]:
    """Who is in a step, as StepRow has it."""
    frozen = plan.frozen or (False,) * len(plan.rows)
    return [
        *(list(map(int, slot)) for slot in zip(plan.rows, plan.seq_ids, frozen, strict=True)),
        *([chunk.row, chunk.seq_id, 2 if plan.seq_ids else 0] for chunk in plan.chunks),
    ]


def _active(plan: StepPlan) -> list[int]:
    """Decoding sequences that get a token."""
    if not plan.frozen:
        return list(plan.seq_ids)
    return [seq_id for seq_id, frozen in zip(plan.seq_ids, plan.frozen, strict=True) if not frozen]


def _begun(plan: StepPlan) -> list[int]:
    """Sequences that get a token from a chunk's logits."""
    return [draw.seq_id for chunk in plan.chunks for draw in chunk.draws]


def _floor_s(plan: StepPlan, replay: Replay, floor: Floor) -> float:
    active = _active(plan)
    cached = sum(replay.held[seq_id] for seq_id in active)
    tokens = sum(len(chunk.token_ids) for chunk in plan.chunks)
    keys = sum(chunk.end for chunk in plan.chunks)
    pairs = sum(len(chunk.token_ids) * (chunk.start + 1 + chunk.end) // 2 for chunk in plan.chunks)
    draws = len(active) + len(_begun(plan))
    return floor.step_s(len(active) + tokens, draws, cached + keys, cached + pairs)
