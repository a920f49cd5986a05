"""Sequences, and what they count."""

from jbatch.host.request import Sequence
from jbatch.outputs import FinishReason
from tests.helpers.schedules import request


def test_reasons_print_as_their_value():
    assert [f"{reason}" for reason in FinishReason] == ["stop", "length", "abort", "error"]


def test_a_sequence_counts():
    sequence = Sequence(seq_id=0, request=request([5, 6, 7], 4), token_ids=[5, 6, 7, 8], num_planned=4)
    assert (sequence.num_prompt, sequence.num_known, sequence.max_len) == (3, 4, 7)
    assert sequence.output_token_ids == [8]
    assert not sequence.running and not sequence.finished
    sequence.row, sequence.finish_reason = 0, FinishReason.LENGTH
    assert sequence.running and sequence.finished
