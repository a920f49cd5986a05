"""Which tokens of prompts a step computes: chunks, oldest sequence first, up to a budget."""

from __future__ import annotations

from collections.abc import Iterator

from jbatch.host.admission import Admitter, NextStep
from jbatch.host.config import SchedulerConfig
from jbatch.host.family import (
    draws_at_the_end_of_its_prompt,
    is_on_the_way,
    shared_start,
    source_of,
)
from jbatch.host.growth import grow
from jbatch.host.lifecycle import Lifecycle
from jbatch.host.limits import StepLimits, fill
from jbatch.host.plan import Chunk, chunk_of, first_draw
from jbatch.host.request import NOT_YET, Sequence
from jbatch.seam.bucket import align, room_of


class Prefill:
    """Plans chunks, of those that run and of those that join."""

    def __init__(self, config: SchedulerConfig, lifecycle: Lifecycle, admitter: Admitter):
        self._lifecycle, self._admitter, self._holdings = lifecycle, admitter, lifecycle.holdings
        self._page_size, self._least_budget = config.shape.page_size, config.least_budget
        self._refill = config.admission.refill
        self._room = room_of(config.largest_bucket, config.shape)
        self._token_sizes = sorted({bucket.tokens for bucket in config.buckets if bucket.tokens})
        self._num_alone = 0  # steps that a few prompt tokens have waited for company

    def budget(self, limits: StepLimits, decoding: bool) -> int:
        """Prompt tokens for a step whose slots decode, or do not. 0: they wait for company."""
        most = min(limits.max_num_batched_tokens, self._token_sizes[-1])
        if not decoding or most <= 0:
            return most
        wanted = self._num_wanted(limits, most)
        if wanted < limits.company.tokens and self._num_alone < limits.company.steps:
            self._num_alone += wanted > 0
            return 0
        return fill(wanted, self._token_sizes, most, self._least_budget)

    def _num_wanted(self, limits: StepLimits, most: int) -> int:
        """Prompt tokens that running and waiting sequences could compute now, up to about `most`."""
        running = self._lifecycle.running
        wanted, free = 0, limits.max_num_seqs - len(running)
        for sequence in reversed(running):
            if sequence.decoding:
                break  # so are all older ones
            wanted += align(len(sequence.token_ids) - sequence.num_cached_planned)
        for waiting in self._lifecycle.waiting.some(free):
            if wanted >= most:
                break
            wanted += align(self._num_to_compute(waiting))
        return wanted

    def _num_to_compute(self, waiting: Sequence) -> int:
        """Tokens that a waiting sequence would have to compute, about."""
        if len(waiting.family) > 1 and waiting is not waiting.family[0]:
            return 1  # it begins behind its prompt
        return len(waiting.token_ids) - len(self._holdings.find(waiting)) * self._page_size

    def chunks(self, budget: int, step: NextStep) -> tuple[Chunk, ...]:
        """Chunks of prompts, as many as a step takes.

        One that is not its sequence's last ends with a page. So a chunk begins where pages that are found may
        end, and the rest is computed by a chunk that there might have been without them.
        """
        budget = min(budget, self._token_sizes[-1])
        if budget <= 0:
            return ()
        chunks: list[Chunk] = []
        draws_left, updates = self._room.chunk_draws, self._holdings.changes.updates
        for sequence in self._prefilling(step):
            if not self._begins(sequence, step):
                continue
            start, end = sequence.num_cached_planned, sequence.num_known
            if end - start > budget:
                end = start + budget
                end -= end % self._page_size
            if end <= start:
                break  # there is no page left in the budget
            if len(updates) + self._holdings.num_missing(sequence, end) > self._room.table_updates:
                break  # the step is full of them: it waits for the next one
            if not grow(sequence, end, self._lifecycle):
                break  # the youngest: it waits for the others' pages
            chunk = self._chunk(sequence, end, step)
            if chunk.draws and len(sequence.family) > 1:
                chunk = self._let_join(sequence, chunk, draws_left - 1, step)
            chunks.append(chunk)
            budget -= align(end - start)
            draws_left -= len(chunk.draws)
            full = budget <= 0 or draws_left <= 0 or len(chunks) == self._room.chunks
            if full or end < sequence.num_known:
                break
        if chunks:
            self._num_alone = 0
        return tuple(chunks)

    def _prefilling(self, step: NextStep) -> Iterator[Sequence]:
        """Running sequences with tokens to prefill, oldest first, then those that may join."""
        running = self._lifecycle.running
        if not self._refill and not running:
            for _ in self._admitter.admit(step):  # the whole batch at once
                pass
        for sequence in [sequence for sequence in running if not sequence.decoding]:
            if sequence.prefilling and not sequence.finished:
                yield sequence
        if self._refill:
            yield from self._admitter.admit(step)

    def _chunk(self, sequence: Sequence, end: int, step: NextStep) -> Chunk:
        chunk = chunk_of(sequence, sequence.num_cached_planned, end)
        sequence.num_cached_planned = end
        sequence.num_planned += len(chunk.draws)
        sequence.decoding = bool(chunk.draws)
        if sequence.prompt_step == NOT_YET and end >= sequence.num_prompt:
            sequence.prompt_step = step.idx
        return chunk

    # Samples of one prompt.

    def _begins(self, sequence: Sequence, step: NextStep) -> bool:
        """Give a sample that has no pages those of another one that hold their prompt. False where it has
        still to wait for the step that computes it."""
        if sequence.pages or len(sequence.family) < 2:
            return True
        source = source_of(sequence, step.idx)
        if source is not None:
            self._holdings.share_prompt(source, sequence, shared_start(sequence))
            if sequence.num_found is None:
                sequence.num_found = sequence.num_cached_planned
        return source is not None or not is_on_the_way(sequence)

    def _let_join(self, leader: Sequence, chunk: Chunk, most: int, step: NextStep) -> Chunk:
        """Up to `most` other samples draw from the last chunk of their prompt, too. They have its pages, and
        decode from the next step on."""
        if leader.num_known > leader.num_prompt or leader.prompt_step != step.idx:
            return chunk  # it is computed again, with its output; or weights have changed meanwhile
        if self._refill:
            self._admitter.admit_samples(leader, most, step.limits)
        joining = [sample for sample in leader.family if draws_at_the_end_of_its_prompt(sample)][:most]
        offset = len(chunk.token_ids) - 1
        draws = list(chunk.draws)
        for sample in joining:
            self._holdings.share_prompt(leader, sample, chunk.end)
            draws.append(first_draw(sample, offset))
            sample.num_planned += 1
            sample.decoding, sample.prompt_step = True, step.idx
            sample.num_found = leader.num_found
        return chunk._replace(draws=tuple(draws))
