"""A runner without a model or a device, whose tokens can be checked with a pencil.

It keeps what a device would: rows, block tables and a paged cache, which holds token ids in place of keys
and values. The next token is the sum of all tokens read back through the block table, plus their number and
the sample's index, modulo the vocabulary: a wrong page, position or row changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from jbatch.host.plan import (
    NUM_SCALARS,
    ROW_WIDTH,
    DecodeInput,
    PrefillInput,
    RowSetup,
    Status,
    StepInput,
    StepOutput,
    unpack,
)
from jbatch.sampling_params import Sampler

LAST_TOKEN, LENGTH, BUDGET, MIN_LEFT, FINISHED, SAMPLE_IDX = (
    RowSetup._fields.index(name)
    for name in ("last_token", "length", "budget", "min_left", "finished", "sample_idx")
)


def next_token(
    token_ids: Sequence[int], vocab_size: int, banned: Iterable[int] = (), sample_idx: int = 0
) -> int:
    """What follows `token_ids`; a banned token gives way to the next id that is not."""
    token = (sum(token_ids) + len(token_ids) + sample_idx) % vocab_size
    while token in banned:
        token = (token + 1) % vocab_size
    return token


def continuation(
    prompt: Sequence[int],
    max_tokens: int,
    vocab_size: int,
    stop_ids: Sequence[int] = (),
    min_tokens: int = 0,
    sample_idx: int = 0,
) -> list[int]:
    """All tokens that a sample gets, by the definition."""
    token_ids = list(prompt)
    for generated in range(max_tokens):
        banned = stop_ids if generated < min_tokens else ()
        token_ids.append(next_token(token_ids, vocab_size, banned, sample_idx))
        if token_ids[-1] in stop_ids:
            break
    return token_ids[len(prompt) :]


class FakeRunner:
    """`submit` and `collect` as the real runner has them. It takes EXTENDED steps for ordinary ones."""

    samplers = tuple(Sampler)

    def __init__(
        self, num_rows: int, num_pages: int, page_size: int, pages_per_seq: int, vocab_size: int = 97
    ):
        self.num_rows, self.page_size, self.vocab_size = num_rows, page_size, vocab_size
        self.num_steps = 0
        self._rows = np.zeros((num_rows, ROW_WIDTH), np.int32)
        self._tables = np.zeros((num_rows, pages_per_seq), np.int32)
        self.cache = np.full((num_pages, page_size), -1, np.int64)  # token ids; -1 where nobody wrote

    def submit(self, step: StepInput) -> StepOutput:
        """Compute a step at once; the handle is its output."""
        self.num_steps += 1
        fields = unpack(step.packed, step.bucket, self.page_size, step.sampler)
        for row, page_idx, page_id in fields.table_updates.tolist():
            if row < self.num_rows:
                self._tables[row, page_idx] = page_id
        output = StepOutput(
            np.zeros((step.bucket.slots, 1), np.int32),
            np.zeros(step.bucket.slots, np.int32),
            np.zeros(step.bucket.slots, np.int32),
        )
        if isinstance(fields, PrefillInput):
            self._prefill(fields, output)
        else:
            self._decode(fields, output)
        return output

    def collect(self, handle: StepOutput) -> tuple[StepOutput, float]:
        """A step's output and when it was ready."""
        return handle, 0.0

    def _prefill(self, fields: PrefillInput, output: StepOutput) -> None:
        for slot, row in enumerate(fields.rows.tolist()):
            if row == self.num_rows:
                continue
            start, length, kv_len = fields.q_starts[slot], fields.q_lens[slot], fields.kv_lens[slot]
            for offset in range(length):
                self._write(row, int(kv_len - length + offset), int(fields.tokens[start + offset]))
            if fields.samples[slot]:
                self._rows[row] = fields.setup[slot]
                self._draw(slot, row, int(kv_len), output)

    def _decode(self, fields: DecodeInput, output: StepOutput) -> None:
        for slot, row in enumerate(fields.rows.tolist()):
            if row == self.num_rows:
                continue
            state = self._rows[row]
            state[FINISHED] |= fields.frozen[slot]
            if state[FINISHED]:
                continue
            self._write(row, int(state[LENGTH]), int(state[LAST_TOKEN]))
            state[LENGTH] += 1
            self._draw(slot, row, int(state[LENGTH]), output)

    def _write(self, row: int, position: int, token_id: int) -> None:
        self.cache[self._tables[row, position // self.page_size], position % self.page_size] = token_id

    def _draw(self, slot: int, row: int, length: int, output: StepOutput) -> None:
        state = self._rows[row]
        pages = self._tables[row, : -(-length // self.page_size)]
        context = self.cache[pages].reshape(-1)[:length].tolist()
        stop_ids = state[NUM_SCALARS:].tolist()
        banned = stop_ids if state[MIN_LEFT] > 0 else ()
        token = next_token(context, self.vocab_size, banned, int(state[SAMPLE_IDX]))
        state[LAST_TOKEN] = token
        state[BUDGET] -= 1
        state[MIN_LEFT] -= 1
        if token in stop_ids:
            output.status[slot] = Status.STOPPED
        elif state[BUDGET] <= 0:
            output.status[slot] = Status.OUT_OF_BUDGET
        state[FINISHED] = output.status[slot] != Status.RUNNING
        output.tokens[slot, 0] = token
        output.num_tokens[slot] = 1
