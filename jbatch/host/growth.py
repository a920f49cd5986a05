"""Pages for a running sequence: free ones, or else those of younger sequences.

The youngest gives up its pages first. The oldest never does, so it ends, and then the next one is the oldest:
every sequence ends.
"""

from __future__ import annotations

from jbatch.host.lifecycle import Lifecycle
from jbatch.host.request import Sequence


def grow(sequence: Sequence, num_tokens: int, lifecycle: Lifecycle) -> bool:
    """Give a sequence pages for `num_tokens`. False where it is the youngest, and there are too few."""
    holdings = lifecycle.holdings
    while not holdings.pool.can_allocate(holdings.num_missing(sequence, num_tokens)):
        youngest = lifecycle.running[-1]
        if youngest is sequence:
            return False
        lifecycle.preempt(youngest)
    holdings.take_pages(sequence, num_tokens)
    return True
