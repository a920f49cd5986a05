"""Samples of one prompt: one of them computes it, and the others draw from it, or begin behind it.

A sample that is there when the prompt's last chunk is planned draws from that chunk, too. One that comes
later begins with the pages of a sample that runs: it computes the prompt's last token again, for its logits.
"""

from __future__ import annotations

from jbatch.host.request import ALONE, Sequence


def shared_start(sequence: Sequence) -> int:
    """The position from which a sequence computes, where another sample's pages hold its prompt."""
    return min(sequence.num_prompt, sequence.num_known - 1)


def source_of(sequence: Sequence, step_idx: int) -> Sequence | None:
    """A sample whose pages hold the whole prompt before step `step_idx`; None where it would save nothing."""
    for sample in sequence.family if shared_start(sequence) else ():
        if sample.row >= 0 and 0 <= sample.prompt_step < step_idx:
            return sample
    return None


def is_on_the_way(sequence: Sequence) -> bool:
    """Whether another sample computes the prompt, so that it is worth waiting."""
    if len(sequence.family) < 2:
        return False
    return shared_start(sequence) > 0 and any(
        sample.row >= 0
        and sample.num_cached_planned > 0
        and sample.prompt_step != ALONE
        and not sample.finished
        for sample in sequence.family
        if sample is not sequence
    )


def runs_already(sequence: Sequence) -> bool:
    """Whether another sample of its prompt has a row."""
    return any(sample.row >= 0 for sample in sequence.family)


def draws_at_the_end_of_its_prompt(sequence: Sequence) -> bool:
    """Whether a sequence with a row has still to begin, and its first draw is of its prompt's last token."""
    return (
        sequence.row >= 0
        and not sequence.finished
        and not sequence.decoding
        and not sequence.num_cached_planned
        and sequence.num_known == sequence.num_planned == sequence.num_prompt
    )
