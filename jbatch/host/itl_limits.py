"""Budgets that follow a target of the time between tokens.

Every sequence that decodes waits for the whole step: prompt tokens beside it make its next token late, and
few of them make first tokens late. So the budget is the largest compiled size whose steps keep the target.
What they take is measured, by the engine: nothing here has a clock, and no size is used that is not compiled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from jbatch.config import EngineConfig
from jbatch.host.limits import Limits, SchedulerView, StepLimits
from jbatch.host.metrics import StepRecord
from jbatch.seam.bucket import Bucket

WINDOW = 64  # steps of the present size that are remembered
ENOUGH = 4  # of them, before a larger size is tried
HOLD, LONGEST_HOLD = 64, 4096  # steps until a size that was too long is tried again: doubled each time
DECODE_SHARE = 0.1  # of a new time, in the mean of steps without prompts


class ItlLimits:
    """A limits function that is told of every step.

    A step with prompts and decoding sequences that takes longer than the target makes the size smaller by
    one. The next larger size is tried where, by the slowest of the last steps of this one, it should keep the
    target: prompts are taken to cost in proportion to their tokens. Where even the smallest size is too long,
    it is used: prompts must go on. Where nothing runs there is nobody to wait, and all of the budget is used.

    Args:
      sizes: prompt tokens of the compiled steps.
      most: the budget where nothing runs, and at most.
      least: a page, with less of which no prompt might begin.
      overlap: whether the host works while the device does.
    """

    def __init__(
        self,
        sizes: Iterable[int],
        target_s: float,
        *,
        most: int,
        max_num_seqs: int,
        least: int = 1,
        overlap: bool = True,
    ):
        self._sizes = sorted(size for size in {*sizes} if least <= size <= most) or [most]
        self._target_s, self._most, self._max_num_seqs = target_s, most, max_num_seqs
        self._overlap = overlap
        self._idx = 0  # of the present size
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._decode_s = 0.0  # of steps without prompts, about
        self._left, self._hold = 0, HOLD  # steps until a larger size may be tried, and the next such number

    def __call__(self, view: SchedulerView) -> StepLimits:
        """The budgets of the next step."""
        return StepLimits(self.size if view.num_running else self._most, self._max_num_seqs)

    @property
    def size(self) -> int:
        """Prompt tokens beside sequences that decode."""
        return self._sizes[self._idx]

    def landed(self, record: StepRecord) -> None:
        """Learn from a step's times."""
        if not record.slots_used:
            return
        device_s, host_s = record.device_s, record.host_s
        seconds = max(device_s, host_s) if self._overlap else device_s + host_s
        if not record.tokens_used:
            share = DECODE_SHARE if self._decode_s else 1.0
            self._decode_s += share * (seconds - self._decode_s)
            return
        self._left = max(0, self._left - 1)
        if record.tokens != self.size:
            return  # few prompts, or planned before the last change
        if seconds > self._target_s:
            self._go_down()
            return
        self._recent.append(seconds)
        if self._may_go_up():
            self._idx += 1
            self._recent.clear()

    def _go_down(self) -> None:
        if self._idx:
            self._idx -= 1
            self._left, self._hold = self._hold, min(2 * self._hold, LONGEST_HOLD)
        self._recent.clear()

    def _may_go_up(self) -> bool:
        if self._idx + 1 == len(self._sizes) or self._left or len(self._recent) < ENOUGH:
            return False
        prompts_s = max(0.0, max(self._recent) - self._decode_s)
        larger = self._sizes[self._idx + 1] / self.size
        return self._decode_s + larger * prompts_s <= self._target_s


def limits_of(config: EngineConfig, buckets: Iterable[Bucket], max_num_seqs: int) -> Limits:
    """The budgets of an engine's steps: constant, or such as keep `target_itl_ms`."""
    most, page_size = config.max_num_batched_tokens, config.page_size
    if config.target_itl_ms is None:
        constant = StepLimits(most, max_num_seqs)
        return lambda view: constant
    sizes = [bucket.tokens for bucket in buckets if bucket.tokens]
    return ItlLimits(
        sizes,
        config.target_itl_ms / 1e3,
        most=most,
        max_num_seqs=max_num_seqs,
        least=min(page_size, max(sizes)),
        overlap=config.overlap,
    )
