"""Who decodes in a step, where sequences share so many pages that not all of them can.

The list of an attention kernel's work has room for as many tokens as the pool holds, and an item for each
slot: a sequence that shares no page needs no more. What sequences share is read once for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from jbatch.host.request import Sequence


class Turns:
    """Takes sequences up to a number of tokens. Who is left out comes first in the next step.

    Args:
      most: tokens that all sequences of a step have together; at least one's.
    """

    def __init__(self, most: int):
        self._most = most
        self._left_out: list[int] = []  # their seq_ids; who waits for the longest time is first

    def take(self, sequences: Iterable[Sequence], num_steps: int) -> list[Sequence]:
        """Those that decode in the next step, `num_steps` times, in the order of `sequences`."""
        decoding = [
            sequence
            for sequence in sequences
            if sequence.decoding and not sequence.finished and sequence.num_planned < sequence.max_len
        ]
        lengths = [min(sequence.num_cached_planned + num_steps, sequence.max_len) for sequence in decoding]
        if sum(lengths) <= self._most:
            self._left_out = []
            return decoding
        places = {seq_id: place for place, seq_id in enumerate(self._left_out)}
        in_turn = sorted(
            zip(decoding, lengths, strict=True), key=lambda pair: places.get(pair[0].seq_id, len(places))
        )
        left, taken, self._left_out = self._most, set(), []
        for sequence, num_tokens in in_turn:
            if self._left_out or num_tokens > left:
                self._left_out.append(sequence.seq_id)
            else:
                left -= num_tokens
                taken.add(sequence.seq_id)
        return [sequence for sequence in decoding if sequence.seq_id in taken]
