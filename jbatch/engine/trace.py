"""What an engine's scheduler was told and what it decided, a line each: a trace, from which `jbatch replay`
repeats every decision without a model.

JSON lines, numbered. No text and no token is in them. Full pages are known by a keyed hash of all tokens up
to their end, so that a replay knows which prompts begin alike; the key is written nowhere.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.host.config import SchedulerConfig
from jbatch.host.landing import Progress as Landed
from jbatch.host.limits import Limits, SchedulerView, StepLimits
from jbatch.host.metrics import StepRecord
from jbatch.host.plan import StepPlan
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.host.request import Sequence
from jbatch.outputs import FinishReason
from jbatch.seam.step_output import StepOutput

FORMAT, VERSION = "jbatch-trace", 1
AT_ITS_END = "at its end"  # why a whole trace ends


class Times(NamedTuple):
    """Of a step, on the engine's clock."""

    submitted: float
    ready: float  # when the host had its result
    taken_in: float


class NoTrace:
    """What an engine reports to, where nobody listens."""

    def added(self, sequence: Sequence) -> None:
        """A sequence was queued."""

    def ended(self, sequence: Sequence, reason: FinishReason) -> None:
        """A sequence was ended from outside of a step: it was aborted, or its text had a stop string."""

    def planned(self, now: float, plan: StepPlan | None) -> None:
        """The scheduler was asked for a step at `now`, and gave this."""

    def landed(
        self, plan: StepPlan, output: StepOutput, record: StepRecord, times: Times, gave: Iterable[Landed]
    ) -> None:
        """A step's result was taken in, and gave tokens to some sequences."""

    def told(self, what: str) -> None:
        """Something else was asked of the scheduler: one of its methods without arguments."""

    def close(self, cut_off: str | None = None) -> None:
        """Nothing follows."""


class TraceWriter(NoTrace):
    """Writes a trace to a file. Where that fails, `error` says so, and nothing more is written.

    Args:
      config: of the scheduler, which must be a new one.

    Raises:
      OSError: where the file cannot be opened.
    """

    def __init__(self, path: str | Path, config: SchedulerConfig):
        self.error: OSError | None = None
        self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115, closed by `close`
        self._num_lines = 0
        self._page_size = config.shape.page_size if config.enable_prefix_caching else 0
        self._key = secrets.token_bytes(16)
        self._hashed: dict[int, tuple[int, bytes]] = {}  # by seq_id: full pages, and the last one's hash
        self._users: dict[str, str] = {}
        self._limits: StepLimits | None = None
        self._line({"format": FORMAT, "version": VERSION, "config": encode_config(config)})

    def watch(self, limits: Limits) -> Limits:
        """The same function, with what it gives in the trace."""

        def watched(view: SchedulerView) -> StepLimits:
            chosen = limits(view)
            if chosen != self._limits and isinstance(chosen, StepLimits):
                self._limits = chosen
                self._line({"limits": chosen})
            return chosen

        return watched

    def added(self, sequence: Sequence) -> None:
        if self._file.closed:
            return
        request = sequence.request
        user = request.user
        fields = {
            "seq": sequence.seq_id,
            "first": sequence.family[0].seq_id if sequence.family else sequence.seq_id,
            "sample": request.sample_idx,
            "prompt_len": sequence.num_prompt,
            "max_tokens": request.max_tokens,
            "arrival": request.arrival,
            "priority": request.priority,
            "deadline": request.deadline,
            "predicted_len": request.predicted_len,
            "length_quantiles": request.length_quantiles,
            "user": None if user is None else self._users.setdefault(user, str(len(self._users))),
            "limits": request.limits,
            "watched": sequence.watched,
            "scored": request.params.prompt_logprobs is not None,
            "first_scored": request.first_scored,
            "skips_cache": bool(request.params.skip_reading_prefix_cache),
            "key": sequence.key,
            "pages": self._new_pages(sequence),
        }
        self._line({"add": fields})

    def ended(self, sequence: Sequence, reason: FinishReason) -> None:
        self._hashed.pop(sequence.seq_id, None)
        self._line({"end": _end_of(sequence, reason)})

    def planned(self, now: float, plan: StepPlan | None) -> None:
        if not self._file.closed:
            self._line(plan_line(now, plan))

    def landed(
        self, plan: StepPlan, output: StepOutput, record: StepRecord, times: Times, gave: Iterable[Landed]
    ) -> None:
        if self._file.closed:
            return
        pages, ends = [], []
        for sequence, _ in gave:
            pages += [[sequence.seq_id, page] for page in self._new_pages(sequence)]
            if sequence.finish_reason is not None:
                self._hashed.pop(sequence.seq_id, None)
                ends.append(_end_of(sequence, sequence.finish_reason))
        result = {
            "step": plan.step_idx,
            "short": _short(plan, output),
            "ends": ends,
            "pages": pages,
            "pages_used": record.pages_used,
            "running": record.num_running,
            "waiting": record.num_waiting,
            "times": times,
        }
        self._line({"result": result})

    def told(self, what: str) -> None:
        self._line({"told": what})

    def close(self, cut_off: str | None = None) -> None:
        if self._file.closed:
            return
        self._line({"closed": cut_off or AT_ITS_END})
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_pages(self, sequence: Sequence) -> list[int]:
        """Hashes of pages that have become full."""
        size = self._page_size
        if not size:
            return []
        num_full, parent = self._hashed.get(sequence.seq_id) or (0, self._root(sequence))
        hashes = []
        for begin in range(num_full * size, len(sequence.token_ids) - size + 1, size):
            tokens = array("i", sequence.token_ids[begin : begin + size]).tobytes()
            parent = self._hash(parent + tokens)
            hashes.append(int.from_bytes(parent))
        self._hashed[sequence.seq_id] = num_full + len(hashes), parent
        return hashes

    def _root(self, sequence: Sequence) -> bytes:
        return self._hash((sequence.request.cache_salt or "").encode())

    def _hash(self, what: bytes) -> bytes:
        return hashlib.blake2b(what, digest_size=8, key=self._key).digest()

    def _line(self, value: dict[str, Any]) -> None:
        if self.error is not None or self._file.closed:
            return
        try:
            self._file.write(to_line(self._num_lines, value))
        except OSError as error:
            self.error = error
        self._num_lines += 1


def to_line(number: int, value: dict[str, Any]) -> str:
    """A line of a trace, by its number."""
    return json.dumps({"n": number, **value}, separators=(",", ":")) + "\n"


def plan_line(now: float, plan: StepPlan | None) -> dict[str, Any]:
    """What a line says of a plan: all that the scheduler decided."""
    if plan is None:
        return {"plan": None, "now": now}
    chunks = [
        [chunk.seq_id, chunk.row, chunk.start, chunk.end, [[draw.seq_id, draw.row] for draw in chunk.draws]]
        for chunk in plan.chunks
    ]
    return {
        "plan": {
            "step": plan.step_idx,
            "bucket": plan.bucket,
            "seqs": plan.seq_ids,
            "rows": plan.rows,
            "frozen": [int(each) for each in plan.frozen],
            "chunks": chunks,
            "preempted": plan.preempted,
            "new_pages": plan.table_updates,
            "copies": plan.page_copies,
            "tables": plan.tables,
            "lookup": plan.lookup,
        },
        "now": now,
    }


def draws_of(plan: StepPlan) -> list[tuple[int, int]]:
    """The draws of a step that some sequence has: each one's place in the output, and its sequence."""
    drawing = [draw.seq_id for chunk in plan.chunks for draw in chunk.draws]
    return [*enumerate(plan.seq_ids), *enumerate(drawing, start=plan.bucket.slots)]


def _short(plan: StepPlan, output: StepOutput) -> list[list[int]]:
    """The draws that gave less than was planned, or a sequence's last token: place, tokens and status."""
    counts, statuses, steps = output.num_tokens.tolist(), output.status.tolist(), plan.bucket.steps
    return [
        [place, counts[place], statuses[place]]
        for place, _ in draws_of(plan)
        if counts[place] != steps or statuses[place]
    ]


def _end_of(sequence: Sequence, reason: FinishReason) -> list[int | str]:
    return [sequence.seq_id, len(sequence.output_token_ids), reason.value]


def encode_config(config: SchedulerConfig) -> dict[str, Any]:
    """A scheduler's configuration as plain data; a policy that is no named one is None."""
    policies = {policy: name for name, policy in POLICIES.items()}
    modes = {mode: name for name, mode in MODES.items()}
    named = {
        "policy": policies.get(config.policy),
        "admission": modes.get(config.admission),
        "shape": config.shape._asdict(),
    }
    return config._asdict() | named
