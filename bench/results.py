"""What a measurement leaves: one JSON file, schema 1, written by every `jbatch bench` command.

    {"schema": 1,
     "kind": "batching" | "throughput" | "latency" | "compare" | "simulated",
     "manifest": {...},              commit, versions, device, driver, clocks, flags (measure/manifest), and
                                     model, engine, max_num_seqs, compile_s, warm_up_s, ceilings
     "workload": {name, hash, num_prompts, num_prompt_tokens, num_output_tokens, seed, scales},
     "step_fields": [...],           names of the columns of each arm's "steps": the fields of StepRow
     "request_fields": [...],        of "requests": the fields of RequestRow
     "arms": {NAME: ARM, ...},
     "sweep": {NAME: [[max_num_seqs, output_throughput], ...]},    with --sweep; else {}
     "sweep_fields": [...],          of "sweep_points": the fields of SweepPoint
     "sweep_points": {NAME: [[...], ...]},                         the same passes, with all their figures
     "gains": {...},                 batching: throughput ratios by name, or {"refused": why}
     ...}                            keys of `extra` (throughput, latency: those that vLLM writes)

An ARM that ran holds the fields of Counts, Rates and Latencies in one flat object (names as `vllm bench`),
and label, definition, max_num_seqs, repeats (each repeat's output_throughput, tokens/s), spread ((most -
least) / median of them), steps and requests; `failed` says why it stopped before its last repeat, or null.
All figures but `repeats` are of one repeat: the one of median output_throughput, the lower of the two where
their number is even. An arm that did not run holds {"label", "definition", "not_run": why} and nothing else.
What does not apply is null.

Throughputs are per second of `duration_s - idle_s`: time in which nothing was unfinished is skipped, not
waited for. Closed runs have none. Files are strict JSON: no NaN, no Infinity.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.workloads.workload import Workload
from jbatch.errors import ConfigError
from jbatch.jobs.files import replacing

SCHEMA = 1
DIGITS = 9
Kind = Literal["batching", "throughput", "latency", "compare", "simulated"]


class StepRow(NamedTuple):
    """One step of the repeat that is shown, in order of launch."""

    kind: str  # prefill, decode, mixed
    slots: int  # of the bucket: sequences that decode in it, and chunks of prompts
    slots_used: int
    pages_used: int  # of the KV cache, when its result was in and the next step, if any, was launched
    device_s: float  # from when the device could start it until the host had its result
    t: float  # seconds since the run's begin when its result was in
    floor_s: (
        float | None
    )  # what the step's useful work takes at least (bench.measure.floor); None: not measured
    computed: int  # tokens of a prefill step, rows of a decode step; useful + padded + wasted + recomputed
    useful: int
    padded: int
    wasted: int
    recomputed: int
    kv_tokens: int  # tokens in the cache, of all sequences that hold pages, this step's included
    rows: list[list[int]]  # [row, request's index in the workload, state], of the first 1000 steps, then
    # empty; state 1: it had ended and is held, 2: a prompt in a mixed step, else 0
    pages_contiguous: int = 0  # those of max_model_len for each running sequence: a cache without pages
    output_tokens: int = 0  # given to requests


class RequestRow(NamedTuple):
    """One request, in the workload's order; times are seconds since the run's begin."""

    arrival: float
    first_token: float
    end: float  # its last token
    prompt_len: int
    output_len: int
    could_start: float | None = (
        None  # when its batch was full, or had waited long enough; others: its arrival
    )
    scheduled: float | None = None  # when the step with its first chunk was planned; None: not known


class SweepPoint(NamedTuple):
    """One pass of an arm at one batch size; None for what is not known."""

    max_num_seqs: int
    output_throughput: float
    mean_e2el_ms: float | None = None
    p50_e2el_ms: float | None = None
    p99_e2el_ms: float | None = None
    p50_ttft_ms: float | None = None
    p99_ttft_ms: float | None = None
    slot_use: float | None = None
    device_busy_share: float | None = None
    floor_share: float | None = None
    kv_of_contiguous: float | None = None


@dataclasses.dataclass(frozen=True)
class Counts:
    """What was computed, step by step: exact, and the same on every machine where the run is closed."""

    num_steps: int
    decode_steps: int  # those in which sequences decoded
    prefill_steps: int  # those with prompts; a mixed step is both
    slot_steps: int  # slots computed, padding included
    useful_slot_steps: int
    output_tokens: int
    prefill_tokens: int  # computed, padding included
    useful_prefill_tokens: int
    recomputed: int
    prefill_padded: int
    decode_padded: int  # slots that no sequence was in
    decode_wasted: int  # rows whose sequence had ended
    num_preempted: int
    peak_pages_used: int
    slot_use: float  # useful_slot_steps / slot_steps
    padded_share: float  # (prefill_tokens - useful_prefill_tokens) / prefill_tokens
    kv_use: float  # tokens in the cache / tokens that the allocated pages hold, mean over the steps
    compilations_after_warmup: int
    mean_pages_used: float  # over the steps, as all of these
    mean_pages_contiguous: float  # of max_model_len tokens for each running sequence
    peak_pages_contiguous: int
    kv_of_contiguous: float  # mean_pages_used / mean_pages_contiguous
    prefix_hit_rate: float = 0.0  # of prompts' tokens, those that were found in the cache


@dataclasses.dataclass(frozen=True)
class Rates:
    """What was done per second of busy time, and how busy the device was in it."""

    duration_s: float  # from the run's begin to its last token
    idle_s: float  # of it, with nothing unfinished: skipped
    request_throughput: float
    output_throughput: float  # tokens/s
    total_token_throughput: float  # prompt tokens too
    request_goodput: float | None  # requests/s within the limits; None: no limits were given
    device_busy_share: float | None  # sum of the steps' device_s / busy time; None: the runner tells no times
    floor_share: float | None  # sum of the steps' floor_s / busy time


@dataclasses.dataclass(frozen=True)
class Spread:
    """How one latency is spread over requests (ITL: over gaps between tokens), in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclasses.dataclass(frozen=True)
class Latencies:
    """TTFT and E2EL from the arrival; TPOT = (E2EL - TTFT) / (output_len - 1). In a file
    `mean_ttft_ms, p50_ttft_ms, p90_ttft_ms, p99_ttft_ms` and so on; None where no request has one.

    The last four are the parts of E2EL: waiting for a batch to be full (static-full alone, else 0), waiting
    for the first chunk to be planned, from then to the first token, and from there to the last.
    """

    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2el: Spread | None
    fill: Spread | None = None
    queue: Spread | None = None
    prefill: Spread | None = None
    decode: Spread | None = None

    def to_json(self) -> dict[str, float | None]:
        """The latencies as a file has them."""
        fields: dict[str, float | None] = {}
        for name in (field.name for field in dataclasses.fields(self)):
            spread = getattr(self, name)
            for part in ("mean", "p50", "p90", "p99"):
                fields[f"{part}_{name}_ms"] = None if spread is None else getattr(spread, part)
        return fields


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """One arm: figures, or why there are none (`not_run`)."""

    label: str  # for people
    definition: str  # what it does, in a sentence
    max_num_seqs: int | None = None
    counts: Counts | None = None
    rates: Rates | None = None
    latencies: Latencies | None = None
    repeats: tuple[float, ...] = ()  # output tokens/s
    steps: tuple[StepRow, ...] = ()
    requests: tuple[RequestRow, ...] = ()
    not_run: str | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # of one kind of arm alone

    @property
    def spread(self) -> float | None:
        """(most - least) / median of the repeats' output throughput; None where there was one repeat."""
        if len(self.repeats) < 2:
            return None
        return (max(self.repeats) - min(self.repeats)) / sorted(self.repeats)[(len(self.repeats) - 1) // 2]

    def to_json(self) -> dict[str, Any]:
        """The arm as a file has it."""
        head: dict[str, Any] = {"label": self.label, "definition": self.definition}
        if self.not_run is not None:
            return head | {"not_run": self.not_run}
        for part in (self.counts, self.rates):
            head |= dataclasses.asdict(part) if part is not None else {}
        head |= self.latencies.to_json() if self.latencies is not None else {}
        head |= {"max_num_seqs": self.max_num_seqs, "repeats": list(self.repeats), "spread": self.spread}
        return head | self.extra | {"steps": list(self.steps), "requests": list(self.requests)}


@dataclasses.dataclass(frozen=True)
class Results:
    """The content of one file."""

    kind: Kind
    manifest: dict[str, Any]
    workload: dict[str, Any]
    arms: dict[str, ArmResult]
    sweep: dict[str, list[SweepPoint]] = dataclasses.field(default_factory=dict)
    gains: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content as a file has it."""
        return self.extra | {
            "schema": SCHEMA,
            "kind": self.kind,
            "manifest": self.manifest,
            "workload": self.workload,
            "step_fields": list(StepRow._fields),
            "request_fields": list(RequestRow._fields),
            "arms": {name: arm.to_json() for name, arm in self.arms.items()},
            "sweep": {name: [point[:2] for point in curve] for name, curve in self.sweep.items()},
            "sweep_fields": list(SweepPoint._fields),
            "sweep_points": self.sweep,
            "gains": self.gains,
        }


def describe(workload: Workload) -> dict[str, Any]:
    """A workload, as a file has it."""
    return {
        "name": workload.name,
        "hash": workload.hash,
        "num_prompts": len(workload.items),
        "num_prompt_tokens": workload.num_prompt_tokens,
        "num_output_tokens": workload.num_output_tokens,
        "seed": workload.seed,
        "scales": workload.scales,
    }


def write(path: Path, results: Results) -> None:
    """Replace the file as a whole, so that a run that is cut leaves the last one that was complete."""
    content = json.dumps(_strict(results.to_json()), allow_nan=False, separators=(",", ":"))
    with replacing(str(path)) as file:
        file.write(content.encode() + b"\n")


def read(path: Path) -> dict[str, Any]:
    """A file's content. Raises ConfigError for what is not a results file of this schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("results", path.name, f"cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "arms" not in content:
        raise ConfigError("results", path.name, f"is no results file of schema {SCHEMA}")
    return content


def _strict(value: Any) -> Any:
    """A value without numbers that JSON does not know: infinite ones as text, NaN as null. Others keep as
    many digits as a measurement has: most of a file are steps."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
