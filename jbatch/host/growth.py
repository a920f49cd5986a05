"""Pages for a running sequence: free ones, or else those of sequences that were admitted after it.

The one of them that the policy would let run last gives up its pages. The oldest never does, so it ends, and
then the next one is the oldest: every sequence ends.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from jbatch.host.lifecycle import Lifecycle
from jbatch.host.request import Sequence


def grow(sequence: Sequence, num_tokens: int, lifecycle: Lifecycle) -> bool:
    """Give a sequence pages for `num_tokens`. False where it is the youngest, and there are too few."""
    holdings, running = lifecycle.holdings, lifecycle.running
    while not holdings.pool.can_allocate(holdings.num_missing(sequence, num_tokens)):
        younger = running[running.index(sequence) + 1 :]
        if not younger:
            return False
        lifecycle.preempt(victim_of(younger))
    holdings.take_pages(sequence, num_tokens)
    return True


def victim_of(younger: Seq[Sequence]) -> Sequence:
    """The one with the largest key; of equal ones, the youngest, which is last. In order of arrival that is
    always the last."""
    return max(reversed(younger), key=lambda sequence: sequence.key)
