"""A runner without a model or a device, whose tokens can be checked with a pencil.

It keeps what a device would: rows, block tables and a paged cache, which holds token ids in place of keys
and values. The next token is the sum of all tokens read back through the block table, plus their number and
the sample's index, modulo the vocabulary: a wrong page, position or row changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from jbatch.sampler import Sampler
from jbatch.seam.rows import COLUMNS, NUM_SCALARS, ROW_WIDTH
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepFields, StepInput, unpack
from jbatch.seam.step_output import Status, StepOutput, num_draws
from jbatch.seam.tenancy import Tenancy


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
    """`submit` and `collect` as the real runner has them. It draws in its own way, whatever the sampler."""

    samplers = tuple(Sampler)
    counts_all = False

    def __init__(self, shape: StateShape, vocab_size: int = 97):
        self.shape, self.vocab_size = shape, vocab_size
        self.num_steps = 0
        self.tenancy = Tenancy()
        self._rows = np.zeros((shape.num_rows, ROW_WIDTH), np.int32)
        self._tables = np.zeros((shape.num_rows, shape.pages_per_seq), np.int32)
        # Token ids; -1 where nobody wrote.
        self.cache = np.full((shape.num_pages, shape.page_size), -1, np.int64)

    def submit(self, step: StepInput) -> StepOutput:
        """Compute a step at once; the handle is its output."""
        self.num_steps += 1
        if step.tables is not None:
            self._tables[step.tables[:, 0]] = step.tables[:, 1:]
        if step.page_copies is not None:
            sources, targets = step.page_copies.T
            self.cache[targets] = self.cache[sources]
        fields = unpack(step.packed, step.bucket, self.shape, step.sampler)
        for row, page_idx, page_id in fields.table_updates.tolist():
            if row < self.shape.num_rows:
                self._tables[row, page_idx] = page_id
        draws = num_draws(step.bucket, self.shape)
        tokens, counts = np.zeros((draws, step.bucket.steps), np.int32), np.zeros(draws, np.int32)
        output = StepOutput(tokens, counts, np.zeros(draws, np.int32))
        for _ in range(step.bucket.steps):
            self._decode(fields, output)
        self._prefill(fields)
        self._draw_from_chunks(fields, step.bucket.slots, output)
        return output

    def is_ready(self, handle: StepOutput) -> bool:
        """Steps end at once."""
        return True

    def collect(self, handle: StepOutput) -> tuple[StepOutput, float]:
        """A step's output and when it was ready."""
        return handle, 0.0

    def _decode(self, fields: StepFields[np.ndarray], output: StepOutput) -> None:
        for slot, row in enumerate(fields.slot_rows.tolist()):
            if row == self.shape.num_rows:
                continue
            state = self._rows[row]
            state[COLUMNS["finished"]] |= fields.frozen[slot]
            if state[COLUMNS["finished"]]:
                continue
            self._write(row, int(state[COLUMNS["length"]]), int(state[COLUMNS["last_token"]]))
            self._draw(slot, row, self._context(row, int(state[COLUMNS["length"]]) + 1), output)

    def _prefill(self, fields: StepFields[np.ndarray]) -> None:
        for idx, row in enumerate(fields.chunk_rows.tolist()):
            if row == self.shape.num_rows:
                continue
            begin, length, kv_len = fields.q_starts[idx], fields.q_lens[idx], fields.kv_lens[idx]
            for offset in range(length):
                self._write(row, int(kv_len - length + offset), int(fields.tokens[begin + offset]))

    def _draw_from_chunks(self, fields: StepFields[np.ndarray], first: int, output: StepOutput) -> None:
        """What a chunk's token sees is in its sequence's pages, whosever row is advanced."""
        for idx, row in enumerate(fields.draw_rows.tolist()):
            if row == self.shape.num_rows:
                continue
            if fields.has_setup[idx]:
                self._rows[row] = fields.setups[idx]
            if self._rows[row, COLUMNS["finished"]]:
                continue
            place = fields.draw_places[idx]
            chunk = int(np.searchsorted(fields.q_starts, place, side="right")) - 1
            length = int(fields.kv_lens[chunk] - fields.q_lens[chunk] + place - fields.q_starts[chunk]) + 1
            context = self._context(int(fields.chunk_rows[chunk]), length)
            self._draw(first + idx, row, context, output)

    def _write(self, row: int, position: int, token_id: int) -> None:
        page_size = self.shape.page_size
        self.cache[self._tables[row, position // page_size], position % page_size] = token_id

    def _context(self, row: int, length: int) -> list[int]:
        """The first `length` tokens that a row's table leads to."""
        pages = self._tables[row, : -(-length // self.shape.page_size)]
        return self.cache[pages].reshape(-1)[:length].tolist()

    def _draw(self, idx: int, row: int, context: list[int], output: StepOutput) -> None:
        state = self._rows[row]
        stop_ids = state[NUM_SCALARS:].tolist()
        banned = stop_ids if state[COLUMNS["min_left"]] > 0 else ()
        token = next_token(context, self.vocab_size, banned, int(state[COLUMNS["sample_idx"]]))
        state[COLUMNS["last_token"]], state[COLUMNS["length"]] = token, len(context)
        state[COLUMNS["budget"]] -= 1
        state[COLUMNS["min_left"]] -= 1
        if token in stop_ids:
            output.status[idx] = Status.STOPPED
        elif state[COLUMNS["budget"]] <= 0:
            output.status[idx] = Status.OUT_OF_BUDGET
        state[COLUMNS["finished"]] = output.status[idx] != Status.RUNNING
        output.tokens[idx, output.num_tokens[idx]] = token
        output.num_tokens[idx] += 1
