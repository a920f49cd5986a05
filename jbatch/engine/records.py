"""What an engine keeps of a step, and what a step gives."""

from __future__ import annotations

from typing import Any, NamedTuple

from jbatch import shown
from jbatch.host.metrics import StepRecord
from jbatch.host.plan import StepPlan
from jbatch.outputs import CompletionOutput, RequestOutput
from jbatch.seam.loaded import Version


class Progress(NamedTuple):
    """New tokens of one sample of a request."""

    request_id: str
    sample_idx: int  # 0 to n - 1
    token_ids: list[int]
    completion: CompletionOutput | None = None  # where it has ended with these
    prompt_token_ids: tuple[int, ...] = ()  # behind which its text stands

    def __repr__(self) -> str:
        """Of which request, and how many."""
        end = "" if self.completion is None else f", completion={self.completion!r}"
        tokens = f"{shown.count(len(self.token_ids))} {shown.ids(self.token_ids)}"
        return f"Progress({self.request_id!r}, sample_idx={self.sample_idx}, {tokens}{end})"


class EngineStep(NamedTuple):
    """What one call of `Engine.step` did."""

    plan: StepPlan | None  # of the step that was launched
    record: StepRecord | None  # of the step whose result came in; with overlap, the one before
    progress: list[Progress]
    outputs: list[RequestOutput]  # requests that ended


class InFlight(NamedTuple):
    """A step that the device has, and whose result was not taken in."""

    plan: StepPlan
    handle: Any
    submitted: float
    host_s: float
    version: Version  # of the weights that it computes with
