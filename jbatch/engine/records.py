"""What an engine keeps of its requests and steps, and what a step gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from jbatch.host.metrics import StepRecord
from jbatch.host.plan import StepPlan
from jbatch.host.request import Key, Request
from jbatch.outputs import CompletionOutput, RequestOutput
from jbatch.seam.loaded import Version


class Progress(NamedTuple):
    """New tokens of one sample of a request."""

    request_id: str
    sample_idx: int  # 0 to n - 1
    token_ids: list[int]
    completion: CompletionOutput | None = None  # where it has ended with these
    prompt_token_ids: tuple[int, ...] = ()  # behind which its text stands


class EngineStep(NamedTuple):
    """What one call of `Engine.step` did."""

    plan: StepPlan | None  # of the step that was launched
    record: StepRecord | None  # of the step whose result came in; with overlap, the one before
    progress: list[Progress]
    outputs: list[RequestOutput]  # requests that ended


Outputs = dict[int, RequestOutput]  # by serial


class Aside(NamedTuple):
    """What was not handed out yet, for whoever steps by hand."""

    outputs: Outputs
    steps: list[EngineStep]


class Unfinished(NamedTuple):
    """A request that has not ended."""

    serial: int  # of all that were added: ids may come again
    samples: dict[int, RequestOutput | None]  # by seq_id; None: it has not ended


class New(NamedTuple):
    """A request that is to be queued."""

    serial: int
    request: Request
    key: Key


class LetGo(NamedTuple):
    """Pages that are held for nobody any more."""

    hold_id: int


Note = New | LetGo | str  # what is to be done before the next step; a text: the id of a request to abort


def is_queued(request_id: str, notes: Iterable[Note]) -> bool:
    """Whether a request of this id is among the notes."""
    return any(isinstance(note, New) and note.request.request_id == request_id for note in notes)


class InFlight(NamedTuple):
    plan: StepPlan
    handle: Any
    submitted: float
    host_s: float
    version: Version  # of the weights that it computes with
