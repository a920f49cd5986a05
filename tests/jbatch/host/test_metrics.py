"""Accounts of steps, added up by hand."""

import dataclasses

import pytest

from jbatch.host.metrics import StepRecord, Summary, summarise
from jbatch.outputs import RequestMetrics

PREFILL = StepRecord(
    step_idx=0, slots=0, slots_used=0, tokens=32, tokens_used=25, useful_slots=0, useful_tokens=20, padded=7,
    wasted=0, recomputed=5, output_tokens=2, pages_used=3, num_running=2, num_waiting=1, num_preempted=1,
    host_s=0.5, device_s=2.0,
)  # fmt: skip
DECODE = StepRecord(
    step_idx=1, slots=4, slots_used=3, tokens=0, tokens_used=0, useful_slots=2, useful_tokens=0, padded=1,
    wasted=1, recomputed=0, output_tokens=2, pages_used=2, num_running=2, num_waiting=1, num_preempted=2,
    host_s=0.25, device_s=1.0,
)  # fmt: skip
MIXED = StepRecord(
    step_idx=2, slots=4, slots_used=4, tokens=16, tokens_used=9, useful_slots=3, useful_tokens=9, padded=7,
    wasted=1, recomputed=0, output_tokens=4, pages_used=5, num_running=4, num_waiting=0, num_preempted=0,
    host_s=0.25, device_s=3.0,
)  # fmt: skip
# The same bucket, without decoding sequences and without prompts.
IDLE_SLOTS = dataclasses.replace(MIXED, slots_used=0, useful_slots=0, padded=11, wasted=0)
IDLE_TOKENS = dataclasses.replace(MIXED, tokens_used=0, useful_tokens=0, padded=16)


@pytest.mark.parametrize(
    ("record", "kind", "useful", "computed"),
    [
        (PREFILL, "prefill", 20, 32),
        (DECODE, "decode", 2, 4),
        (MIXED, "mixed", 12, 20),
        (IDLE_SLOTS, "prefill", 9, 20),
        (IDLE_TOKENS, "decode", 3, 20),
    ],
)
def test_what_a_record_says_of_its_places(record, kind, useful, computed):
    """Rows of decoding sequences and tokens of prompts are places alike."""
    assert (record.kind, record.useful, record.computed) == (kind, useful, computed)
    assert record.useful + record.padded + record.wasted + record.recomputed == record.computed


def test_a_summary_adds_up_its_steps():
    assert summarise([PREFILL, DECODE, DECODE]) == Summary(
        num_steps=3,
        prefill_steps=1,
        decode_steps=2,
        slot_steps=8,
        useful_slot_steps=4,
        prefill_tokens=32,
        useful_prefill_tokens=20,
        padded_slots=2,
        padded_tokens=7,
        wasted=2,
        recomputed=5,
        output_tokens=6,
        num_preempted=5,
        peak_pages_used=3,
        host_s=1.0,
        device_s=4.0,
    )


def test_a_mixed_step_counts_as_both():
    summary = summarise([PREFILL, MIXED])
    assert (summary.num_steps, summary.prefill_steps, summary.decode_steps) == (2, 2, 1)
    assert (summary.slot_steps, summary.useful_slot_steps) == (4, 3)
    assert (summary.prefill_tokens, summary.useful_prefill_tokens) == (48, 29)


def test_shares():
    summary = summarise([PREFILL, DECODE])
    assert summary.slot_use == 2 / 4
    assert summary.prefill_use == 20 / 32


def test_a_summary_in_one_line():
    assert summarise([PREFILL, DECODE]).describe() == (
        "4 tokens in 2 steps: 1 decoded, 1 had prompts; "
        "50% of decode slots and 62% of prefill tokens useful; 3 preemptions"
    )


def test_no_steps_no_division_by_zero():
    assert summarise([]) == Summary()
    assert (Summary().slot_use, Summary().prefill_use) == (0.0, 0.0)


@pytest.mark.parametrize("records", [[PREFILL, DECODE], [DECODE, MIXED, PREFILL], [IDLE_SLOTS, IDLE_TOKENS]])
def test_a_summary_is_closed_as_its_steps_are(records):
    summary = summarise(records)
    useful = summary.useful_slot_steps + summary.useful_prefill_tokens
    computed = summary.slot_steps + summary.prefill_tokens
    assert useful + summary.padded + summary.wasted + summary.recomputed == computed


def test_first_token_latency():
    metrics = RequestMetrics(
        arrival_time=1.0,
        scheduled_ts=2.0,
        first_token_ts=3.5,
        last_token_ts=9.0,
        finished_ts=9.0,
        num_generation_tokens=4,
        num_preemptions=0,
    )
    assert metrics.first_token_latency == 2.5
    assert dataclasses.replace(metrics, first_token_ts=None).first_token_latency is None
