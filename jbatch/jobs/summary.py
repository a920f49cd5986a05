"""What one run of a job did: counts, throughput and latencies, in memory that does not grow."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from jbatch.host.metrics import Summary
from jbatch.model_dir.generation_json import describe_model_defaults
from jbatch.outputs import FinishReason, RequestMetrics, RequestOutput
from jbatch.shown import shorten

PERCENTILES = (50, 90, 99)
ERROR_CHARS = 200


class Histogram:
    """Durations, in buckets whose bounds grow by 2 % from 1 microsecond to 11 days: a percentile is right to
    1 %, in at most 1,400 numbers."""

    LOWEST_S, HIGHEST_S, GROWTH = 1e-6, 1e6, 1.02

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count, self._sum = 0, 0.0

    def add(self, seconds: float) -> None:
        within = min(max(seconds, self.LOWEST_S), self.HIGHEST_S)
        bucket = int(math.log(within / self.LOWEST_S) / math.log(self.GROWTH))
        self._buckets[bucket] += 1
        self.count += 1
        self._sum += seconds

    @property
    def mean(self) -> float:
        return self._sum / self.count if self.count else math.nan

    def percentile(self, percent: float) -> float:
        """The least duration that `percent` of all do not exceed (nearest rank); NaN where there are none."""
        rank = max(1, math.ceil(self.count * percent / 100))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return self.LOWEST_S * self.GROWTH ** (bucket + 0.5)
        return math.nan


class JobSummary:
    """Follows one run. Names of its figures are those of vLLM's `bench serve`.

    TTFT: from when the request entered the engine's window to its first token. TPOT: (last token - first
    token) / (tokens - 1). E2EL: to its end. Each prompt counts once, whatever its `n`, and one that asks for
    no tokens not at all: all three are of the same requests.

    Args:
      model_defaults: sampling parameters that the model sets, for lines that do not.
    """

    def __init__(self, model_defaults: Mapping[str, Any] | None = None) -> None:
        self._model_defaults = dict(model_defaults or {})
        self.num_results = 0
        self.finish_reasons: Counter[str] = Counter()  # of outputs: n per request
        self.num_may_end_early = self.num_cut_off = 0  # outputs; of the former, those that ended by length
        self.errors: Counter[str] = Counter()  # by code
        self.first_error: str | None = None
        self.input_tokens = self.output_tokens = self.cached_tokens = 0
        self.latencies = {"ttft": Histogram(), "tpot": Histogram(), "e2el": Histogram()}

    def add(self, outputs: Iterable[RequestOutput], may_end_early: bool = True) -> None:
        """Take in an answer, of one prompt or several."""
        self.num_results += 1
        for output in outputs:
            self.input_tokens += len(output.prompt_token_ids)
            self.cached_tokens += output.num_cached_tokens
            for completion in output.outputs:
                self.finish_reasons[str(completion.finish_reason)] += 1
                self.output_tokens += len(completion.token_ids)
                self.num_may_end_early += may_end_early
                self.num_cut_off += may_end_early and completion.finish_reason == FinishReason.LENGTH
            if output.metrics is not None:
                self._add_latencies(output.metrics, len(output.outputs))

    def _add_latencies(self, metrics: RequestMetrics, num_samples: int) -> None:
        if metrics.first_token_ts is None or metrics.last_token_ts is None:
            return
        self.latencies["e2el"].add(metrics.finished_ts - metrics.arrival_time)
        self.latencies["ttft"].add(metrics.first_token_ts - metrics.arrival_time)
        steps = metrics.num_generation_tokens / num_samples - 1
        if steps > 0:
            self.latencies["tpot"].add((metrics.last_token_ts - metrics.first_token_ts) / steps)

    def add_error(self, code: str, error: str) -> None:
        """Take in an error: whose it is, and what it says."""
        self.first_error = self.first_error or error
        self.num_results += 1
        self.errors[code] += 1

    @property
    def mostly_length(self) -> bool:
        """Whether more than half of the outputs that may end early were cut off by their length."""
        return 2 * self.num_cut_off > self.num_may_end_early

    def figures(self, engine: Summary, elapsed_s: float, compilations: int) -> dict[str, Any]:
        """All figures of the run, for JSON; a latency nobody had is null."""
        num_errors = self.errors.total()
        seconds = max(elapsed_s, 1e-9)
        figures: dict[str, Any] = {
            "completed": self.num_results - num_errors,
            "failed": num_errors,
            "finish_reasons": dict(self.finish_reasons),
            "errors": dict(self.errors),
            "first_error": self.first_error,
            "duration_s": elapsed_s,
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "total_cached_tokens": self.cached_tokens,  # of the prompts'
            "request_throughput": (self.num_results - num_errors) / seconds,
            "output_throughput": self.output_tokens / seconds,
            "total_token_throughput": (self.input_tokens + self.output_tokens) / seconds,
        }
        for name, histogram in self.latencies.items():
            figures[f"mean_{name}_ms"] = _ms(histogram.mean)
            for percent in PERCENTILES:
                figures[f"p{percent}_{name}_ms"] = _ms(histogram.percentile(percent))
        figures |= {
            "slot_use": engine.slot_use,
            "prefill_padding": 1 - engine.prefill_use if engine.prefill_tokens else 0.0,
            "preemptions": engine.num_preempted,
            "prefix_hit_rate": engine.hit_rate,
            "compilations_after_warmup": compilations,
            "reachable_prefix_hit_rate": engine.reachable_hit_rate,
            "model_defaults": self._model_defaults,
            "engine": dataclasses.asdict(engine),
        }
        return figures


def what_is_there(num_results: int, num_errors: int) -> dict[str, int]:
    """Figures of the whole output, after all runs: what tells whether a summary is of its last one."""
    return {"results_in_output": num_results, "errors_in_output": num_errors}


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds * 1e3, 3)


def describe(figures: dict[str, Any]) -> list[str]:
    """The figures as lines to read."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(figures["finish_reasons"].items()))
    errors = ", ".join(f"{count} {code}" for code, count in sorted(figures["errors"].items()))
    lines = [
        f"{_lines(figures['completed'])} answered{f' (samples: {reasons})' if reasons else ''}, "
        f"{_lines(figures['failed'])} with errors{f' ({errors})' if errors else ''} "
        f"in {figures['duration_s']:.1f} s"
    ]
    if figures["first_error"] is not None:
        lines[0] += f"; first: {shorten(figures['first_error'], ERROR_CHARS)}"
    if not figures["completed"]:
        return lines
    lines.append(
        f"{figures['total_input_tokens']} prompt and {figures['total_output_tokens']} output tokens; "
        f"{figures['request_throughput']:.1f} requests/s, {figures['output_throughput']:.0f} output tokens/s"
    )
    lines.append("; ".join(_latencies(figures, name) for name in ("ttft", "tpot", "e2el")))
    lines.append(
        f"{figures['slot_use']:.0%} of decode slots used, {figures['prefill_padding']:.0%} of prefill tokens "
        f"padding, {figures['total_cached_tokens'] / max(1, figures['total_input_tokens']):.0%} of prompt "
        f"tokens from the cache ({figures['prefix_hit_rate']:.0%} of those looked up, "
        f"{figures['reachable_prefix_hit_rate']:.0%} in one that forgets nothing), "
        f"{figures['preemptions']} preemptions, "
        f"{figures['compilations_after_warmup']} compilations after warm-up"
    )
    if figures["model_defaults"]:
        lines.append(describe_model_defaults(figures["model_defaults"]))
    return lines


def _lines(number: int) -> str:
    return f"{number} line{'' if number == 1 else 's'}"


def _latencies(figures: dict[str, Any], name: str) -> str:
    values = [figures[f"p{percent}_{name}_ms"] for percent in PERCENTILES]
    shown = "/".join("-" if value is None else f"{value:.0f}" for value in values)
    return f"{name.upper()} p50/p90/p99 {shown} ms"
