"""What each step did, in closed accounts: useful + padded + wasted + recomputed = computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

from jbatch import shown


@dataclasses.dataclass(frozen=True, slots=True)
class StepRecord:
    """One step's account, in rows of decoding sequences and in tokens of prompts, each a place of the step.
    Where it decodes several times, a row counts as often.

    padded: no sequence was there. wasted: its sequence had ended. recomputed: a position that was cached
    before a preemption. useful: the rest.
    """

    step_idx: int
    slots: int  # of the bucket
    slots_used: int
    tokens: int  # of the bucket
    tokens_used: int
    useful_slots: int
    useful_tokens: int
    padded: int
    wasted: int
    recomputed: int
    output_tokens: int  # given to requests
    pages_used: int
    num_running: int
    num_waiting: int
    num_preempted: int
    looked_up: int = 0  # tokens of admitted sequences whose pages were looked up
    found: int = 0  # of these, tokens that were in the cache
    reachable: int = 0  # of these, tokens that a cache which forgets nothing would hold
    num_decode_steps: int = 1
    host_s: float = 0.0  # schedule, pack, dispatch, apply
    device_s: float = 0.0  # from when the device could start the step until the host had its result

    @property
    def computed(self) -> int:
        """Places of the step: useful + padded + wasted + recomputed."""
        return self.slots + self.tokens

    @property
    def useful(self) -> int:
        return self.useful_slots + self.useful_tokens

    @property
    def kind(self) -> Literal["prefill", "decode", "mixed"]:
        """In a word, for people: what the step was used for, whatever else its bucket holds."""
        if not self.tokens_used:
            return "decode"
        return "mixed" if self.slots_used else "prefill"


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run's totals."""

    num_steps: int = 0  # dispatched
    prefill_steps: int = 0  # those that computed tokens of prompts
    decode_steps: int = 0  # in which sequences decoded: k of a dispatch of k, and a mixed step is one, too
    slot_steps: int = 0  # slots of all steps' buckets
    useful_slot_steps: int = 0
    prefill_tokens: int = 0  # computed, with padding
    useful_prefill_tokens: int = 0
    padded_slots: int = 0
    padded_tokens: int = 0
    wasted: int = 0
    recomputed: int = 0
    output_tokens: int = 0
    num_preempted: int = 0
    looked_up: int = 0
    found: int = 0
    reachable: int = 0
    peak_pages_used: int = 0
    host_s: float = 0.0
    device_s: float = 0.0

    @property
    def padded(self) -> int:
        """Places of steps that no sequence held."""
        return self.padded_slots + self.padded_tokens

    @property
    def slot_use(self) -> float:
        """Share of the computed decode slots that gave a token."""
        return self.useful_slot_steps / self.slot_steps if self.slot_steps else 0.0

    @property
    def prefill_use(self) -> float:
        """Share of the computed prefill tokens that were new."""
        return self.useful_prefill_tokens / self.prefill_tokens if self.prefill_tokens else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the tokens that were looked up whose keys and values were in the cache."""
        return self.found / self.looked_up if self.looked_up else 0.0

    @property
    def reachable_hit_rate(self) -> float:
        """What `hit_rate` could have been at most: in a cache that forgets nothing, had each step landed
        before the next one was planned."""
        return self.reachable / self.looked_up if self.looked_up else 0.0

    def describe(self) -> str:
        """In one line."""
        hits = f"{self.hit_rate:.0%} of prompts' tokens from the cache; " if self.found else ""
        return (
            f"{self.output_tokens} tokens in {self.num_steps} steps: {self.decode_steps} decoded, "
            f"{self.prefill_steps} had prompts; "
            f"{self.slot_use:.0%} of decode slots and {self.prefill_use:.0%} of prefill tokens useful; "
            f"{hits}{self.num_preempted} preemptions"
        )

    def __repr__(self) -> str:
        return f"Summary({self.describe()})"

    def _repr_html_(self) -> str:
        steps = f"{self.num_steps:,}: {self.decode_steps:,} decoded, {self.prefill_steps:,} had prompts"
        rows = [
            ("steps", steps),
            ("output tokens", f"{self.output_tokens:,}"),
            ("decode slots", f"{self.slot_steps:,}, {self.slot_use:.0%} useful"),
            ("prefill tokens", f"{self.prefill_tokens:,}, {self.prefill_use:.0%} useful"),
            ("from the cache", f"{self.found:,} of {self.looked_up:,} prompt tokens looked up"),
            ("most pages in use", f"{self.peak_pages_used:,}"),
            ("preemptions", f"{self.num_preempted:,}"),
        ]
        return shown.table(("", ""), rows)

    def with_step(self, record: StepRecord) -> Summary:
        """These totals and one step more."""
        return Summary(
            num_steps=self.num_steps + 1,
            prefill_steps=self.prefill_steps + (record.tokens_used > 0),
            decode_steps=self.decode_steps + record.num_decode_steps * (record.slots_used > 0),
            slot_steps=self.slot_steps + record.slots,
            useful_slot_steps=self.useful_slot_steps + record.useful_slots,
            prefill_tokens=self.prefill_tokens + record.tokens,
            useful_prefill_tokens=self.useful_prefill_tokens + record.useful_tokens,
            padded_slots=self.padded_slots + record.slots - record.slots_used,
            padded_tokens=self.padded_tokens + record.tokens - record.tokens_used,
            wasted=self.wasted + record.wasted,
            recomputed=self.recomputed + record.recomputed,
            output_tokens=self.output_tokens + record.output_tokens,
            num_preempted=self.num_preempted + record.num_preempted,
            looked_up=self.looked_up + record.looked_up,
            found=self.found + record.found,
            reachable=self.reachable + record.reachable,
            peak_pages_used=max(self.peak_pages_used, record.pages_used),
            host_s=self.host_s + record.host_s,
            device_s=self.device_s + record.device_s,
        )


def summarise(records: Iterable[StepRecord]) -> Summary:
    """The totals of some steps."""
    summary = Summary()
    for record in records:
        summary = summary.with_step(record)
    return summary
