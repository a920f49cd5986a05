"""A step's result is taken in: tokens, lengths, ends, and the step's account.

Plans are upper bounds. What is so is set here alone: a draw may bring fewer tokens than were planned, and
then the plan is taken back so far.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from jbatch.host.metrics import StepRecord
from jbatch.host.plan import Chunk, StepPlan
from jbatch.host.request import Sequence
from jbatch.outputs import FinishReason
from jbatch.seam.step_output import Status, StepOutput

NON_FINITE = "logits are not finite"
DEVICE_ERRORS = {
    Status.NON_FINITE: NON_FINITE + " at position {position}; "
    "a float16 model may overflow: try dtype='bfloat16'",
    Status.NOTHING_LEFT: "no token is left to draw at position {position}: allowed_token_ids, bad_words, "
    "min_tokens and logits_fn rule out all",
}
Progress = tuple[Sequence, list[int]]  # the tokens that one applied step gave one sequence
Find = Callable[[int], Sequence | None]  # the sequence of a seq_id; one that has ended takes nothing
Finish = Callable[..., None]  # (sequence, reason, stop_reason=, error=)
Publish = Callable[[Sequence, int], None]  # so many of its tokens are in the cache
Distrust = Callable[[Sequence], None]  # what is in the cache of it is not to be used


class Landing:
    """Takes in one step's result, and adds up what came of it."""

    def __init__(self, find: Find, finish: Finish, publish: Publish, distrust: Distrust):
        self._find, self._finish, self._publish, self._distrust = find, finish, publish, distrust
        self.progress: list[Progress] = []
        self.left_early: list[Sequence] = []  # without a row, and short of the tokens that were planned
        self.useful_slots = self.useful_tokens = self.wasted = self.recomputed = 0
        self.output_tokens = 0  # that sequences were given

    @property
    def num_live(self) -> int:
        """Places of the step that some sequence held."""
        return self.useful_slots + self.useful_tokens + self.wasted + self.recomputed

    def account(self, plan: StepPlan, *, pages_used: int, num_running: int, num_waiting: int) -> StepRecord:
        """The step's record, once all is taken in, with what the scheduler then holds."""
        bucket = plan.bucket
        slots = bucket.slots * bucket.steps
        return StepRecord(
            step_idx=plan.step_idx,
            slots=slots,
            slots_used=len(plan.seq_ids) * bucket.steps,
            tokens=bucket.tokens,
            tokens_used=sum([len(chunk.token_ids) for chunk in plan.chunks]),
            useful_slots=self.useful_slots,
            useful_tokens=self.useful_tokens,
            padded=slots + bucket.tokens - self.num_live,
            wasted=self.wasted,
            recomputed=self.recomputed,
            output_tokens=self.output_tokens,
            pages_used=pages_used,
            num_running=num_running,
            num_waiting=num_waiting,
            num_preempted=len(plan.preempted),
            looked_up=plan.lookup.wanted,
            found=plan.lookup.found,
            reachable=plan.lookup.reachable,
            num_decode_steps=bucket.steps,
        )

    def take_in(self, plan: StepPlan, output: StepOutput) -> None:
        """All draws: those of the slots, then those of the chunks."""
        tokens, counts, statuses = (array.tolist() for array in output[:3])
        wasted = self._take_in_draws(plan.seq_ids, tokens, counts, statuses)
        self.wasted += wasted
        self.useful_slots += plan.bucket.steps * len(plan.seq_ids) - wasted
        idx = plan.bucket.slots
        for chunk in plan.chunks:
            if not chunk.draws:
                self._take_in_chunk(chunk, draws=False, sound=True)
                continue
            places = slice(idx, idx := idx + len(chunk.draws))
            seq_ids, status = [draw.seq_id for draw in chunk.draws], statuses[places]
            draws = any([self._unfinished(seq_id) is not None for seq_id in seq_ids])
            self._take_in_chunk(chunk, draws, sound=Status.NON_FINITE not in status)
            self._take_in_draws(seq_ids, tokens[places], counts[places], status)

    def _take_in_draws(
        self, seq_ids: Seq[int], tokens: list[list[int]], counts: list[int], statuses: list[int]
    ) -> int:
        """The tokens of some draws: of each as many as were planned, or fewer. Returns how many planned ones
        nobody got. A step has one for each slot: there is no call here for those that just go on."""
        find, append, num_planned = self._find, self.progress.append, len(tokens[0])
        wasted = given = 0
        for seq_id, new, count, status in zip(seq_ids, tokens, counts, statuses, strict=False):
            sequence = find(seq_id)
            if sequence is None or sequence.finish_reason is not None:
                wasted += num_planned
                continue
            if count < num_planned:
                new = new[:count]
                wasted += num_planned - max(1, count)
            token_ids = sequence.token_ids
            token_ids += new
            append((sequence, new))
            given += count
            num_cached = len(token_ids) - 1  # the last one is fed to the next step
            if sequence.row >= 0:  # else it was preempted meanwhile
                sequence.num_cached = num_cached
            if num_cached >= sequence.publish_at:
                self._publish(sequence, num_cached)
            if status:
                self._end(sequence, status)
            elif count < num_planned:
                self._take_back(sequence, num_planned - count)
        self.output_tokens += given
        return wasted

    def _take_back(self, sequence: Sequence, missing: int) -> None:
        """So many planned tokens did not come."""
        sequence.num_planned -= missing
        if sequence.row >= 0:
            sequence.num_cached_planned -= missing
        elif sequence.leaving:
            self.left_early.append(sequence)

    def _unfinished(self, seq_id: int) -> Sequence | None:
        sequence = self._find(seq_id)
        return None if sequence is None or sequence.finish_reason is not None else sequence

    def _take_in_chunk(self, chunk: Chunk, draws: bool, sound: bool) -> None:
        """A chunk's tokens are in the cache: of its own sequence, and of others that draw from it.

        Args:
          draws: whether someone draws from it who has not ended.
          sound: whether all logits that were drawn from are finite.
        """
        sequence = self._unfinished(chunk.seq_id)
        if sequence is None and not draws:
            self.wasted += len(chunk.token_ids)
            return
        self.recomputed += chunk.num_recomputed
        self.useful_tokens += len(chunk.token_ids) - chunk.num_recomputed
        if sequence is None:
            return
        if sequence.num_preemptions == chunk.attempt:
            if sequence.row >= 0:
                sequence.num_cached = chunk.end
            if not sound:
                self._distrust(sequence)
            elif chunk.end >= sequence.publish_at:
                self._publish(sequence, chunk.end)
        if chunk.end == sequence.max_len:  # it only scored its prompt
            self.progress.append((sequence, []))
            self._finish(sequence, FinishReason.LENGTH)

    def _end(self, sequence: Sequence, status: int) -> None:
        if status == Status.STOPPED:
            last = sequence.token_ids[-1]
            named = last in (sequence.request.params.stop_token_ids or ())  # else end-of-sequence
            self._finish(sequence, FinishReason.STOP, stop_reason=last if named else None)
        elif status == Status.OUT_OF_BUDGET:
            self._finish(sequence, FinishReason.LENGTH)
        else:
            if status == Status.NON_FINITE:
                self._distrust(sequence)
            error = DEVICE_ERRORS[status].format(position=len(sequence.token_ids))
            self._finish(sequence, FinishReason.ERROR, error=error)
