"""What a step does, sequence by sequence: a StepPlan, made by the scheduler and packed for the device."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from jbatch import shown
from jbatch.host.request import Sequence
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket
from jbatch.seam.rows import MIN_TOP_P, RowSetup


class Draw(NamedTuple):
    """A token to draw for a sequence, from the logits of one of a chunk's tokens."""

    seq_id: int
    row: int
    offset: int  # of the token in the chunk
    setup: RowSetup | None  # what the row begins with; None: what it is on the device


class Chunk(NamedTuple):
    """A run of one sequence's tokens to prefill, from position `start`, and the draws from their logits."""

    seq_id: int
    row: int
    token_ids: tuple[int, ...]
    start: int
    num_recomputed: int = 0  # of these, positions that were cached before a preemption
    attempt: int = 0  # how often the sequence had been preempted: a result of an earlier attempt is no length
    draws: tuple[Draw, ...] = ()
    targets: tuple[int, ...] = ()  # per token, the next one of the prompt where it is to be scored, or -1

    def __repr__(self) -> str:
        """Whose it is, and from where to where; not its tokens."""
        ends = f", {shown.count(len(self.draws), 'draw')}" if self.draws else ""
        return f"Chunk(seq_id={self.seq_id}, row={self.row}, start={self.start}, end={self.end}{ends})"

    @property
    def end(self) -> int:
        """The position behind the last token."""
        return self.start + len(self.token_ids)


class TableUpdate(NamedTuple):
    """block_tables[row, page_idx] = page_id."""

    row: int
    page_idx: int
    page_id: int


class PageCopy(NamedTuple):
    """Page `dst` becomes what page `src` is, before the step."""

    src: int
    dst: int


class Table(NamedTuple):
    """A row's block table, whole: it begins with these pages, before the step and its table updates."""

    row: int
    page_ids: tuple[int, ...]


class Lookup(NamedTuple):
    """Tokens of sequences that a step admitted."""

    wanted: int = 0  # of those for which pages were looked up
    found: int = 0  # of these, in the cache
    reachable: int = 0  # of these, in a cache that forgets nothing (`SeenPages`)


NO_LOOKUP = Lookup()


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Slot i decodes sequence `seq_ids[i]`, whose device state is row `rows[i]`.

    The draws of a step are those of its slots, in order, and then those of its chunks.
    """

    step_idx: int
    bucket: Bucket
    seq_ids: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    frozen: tuple[bool, ...] = ()  # per slot: ended, but held until its batch has ended; (): none
    chunks: tuple[Chunk, ...] = ()
    table_updates: tuple[TableUpdate, ...] = ()
    page_copies: tuple[PageCopy, ...] = ()
    sampler: Sampler = Sampler.GREEDY
    preempted: tuple[int, ...] = ()  # sequences whose pages this step took
    tables: tuple[Table, ...] = ()
    lookup: Lookup = NO_LOOKUP

    def __repr__(self) -> str:
        """What it computes for whom; not what it tells the device."""
        parts = [f"step_idx={self.step_idx}", repr(self.bucket)]
        if self.seq_ids:
            parts.append(f"seq_ids={self.seq_ids}, rows={self.rows}")
        if self.chunks:
            parts.append(f"chunks={list(self.chunks)}")
        if self.preempted:
            parts.append(f"preempted={self.preempted}")
        return f"StepPlan({', '.join(parts)})"


def row_setup(sequence: Sequence) -> RowSetup:
    """The device's view of a sequence whose known tokens have all been prefilled, before it draws."""
    params, num_generated = sequence.request.params, sequence.num_known - sequence.num_prompt
    return RowSetup(
        length=sequence.num_known,
        budget=sequence.request.max_tokens - num_generated,
        min_left=max(0, params.min_tokens - num_generated),
        seed=sequence.request.seed,
        sample_idx=sequence.request.sample_idx,
        temperature=0.0 if params.greedy else params.temperature,
        top_k=max(0, params.top_k),
        top_p=max(params.top_p, MIN_TOP_P),
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        prompt_len=sequence.num_prompt,
        request_idx=sequence.request.request_idx,
        has_bias=bool(params.logit_bias or params.allowed_token_ids),
        has_bad_words=bool(sequence.request.bad_word_ids),
        stop_ids=sequence.request.stop_ids,
    )


def first_draw(sequence: Sequence, offset: int) -> Draw:
    """What a sequence begins with: from the logits of its last known token, at `offset` of a chunk."""
    return Draw(sequence.seq_id, sequence.row, offset, row_setup(sequence))


def chunk_of(sequence: Sequence, start: int, end: int) -> Chunk:
    """Positions `start` to `end` of a sequence, to prefill; with a draw, where they end with its last known
    token and it may grow."""
    draws: tuple[Draw, ...] = ()
    if end == sequence.num_known < sequence.max_len:
        draws = (first_draw(sequence, end - start - 1),)
    return Chunk(
        seq_id=sequence.seq_id,
        row=sequence.row,
        token_ids=tuple(sequence.token_ids[start:end]),
        start=start,
        num_recomputed=max(0, min(end, sequence.num_computed) - start),
        attempt=sequence.num_preemptions,
        draws=draws,
        targets=_targets(sequence, start, end),
    )


def _targets(sequence: Sequence, start: int, end: int) -> tuple[int, ...]:
    """The prompt tokens that a chunk of these positions must score: each one's next. Those of positions that
    were computed before a preemption have been scored, most often."""
    request = sequence.request
    first = max(start, sequence.num_scored, request.first_scored - 1)
    last = min(end, sequence.num_prompt - 1)
    asked = request.params.prompt_logprobs is not None and request.sample_idx == 0  # once for all samples
    if not asked or first >= last:
        return ()
    return (-1,) * (first - start) + request.prompt_token_ids[first + 1 : last + 1]
