"""What an engine did and is doing, as metrics under vLLM's names: counted as steps and requests end."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Sequence

from jbatch.engine.metric import Counter, Gauge, Histogram, Metric
from jbatch.host.metrics import StepRecord, Summary
from jbatch.host.request import Request
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason, RequestMetrics, RequestOutput

PREFIX = "jbatch:"


def _grid(mantissas: Sequence[int], lowest: int, highest: int) -> tuple[float, ...]:
    """Each mantissa times each power of ten."""
    powers = range(lowest, highest + 1)
    return tuple(float(f"{mantissa}e{power}") for power in powers for mantissa in mantissas)


TOKENS = _grid((1, 2, 5), 0, 5)
SECONDS = _grid((1, 2, 5), -4, 3)
SAMPLES = (1.0, 2.0, 5.0, 10.0, 20.0)

HISTOGRAMS = {  # by name: bounds, and what is counted
    "iteration_tokens_total": (TOKENS, "Tokens of a step: of prompts, and given to those that decode."),
    "inter_token_latency_seconds": (SECONDS, "Time between steps, for each token of one that decodes."),
    "time_to_first_token_seconds": (SECONDS, "From a request's arrival to its first token."),
    "request_time_per_output_token_seconds": (SECONDS, "A request's mean time per token after the first."),
    "e2e_request_latency_seconds": (SECONDS, "From a request's arrival to its end."),
    "request_queue_time_seconds": (SECONDS, "From a request's arrival to its first step."),
    "request_prompt_tokens": (TOKENS, "Prompt tokens of a request."),
    "request_generation_tokens": (TOKENS, "Tokens of a sample."),
    "request_params_n": (SAMPLES, "The parameter n of a request."),
    "request_params_max_tokens": (TOKENS, "The most tokens that a sample may have."),
}


class Histo:
    """Observations, counted by the least of the bounds that they do not exceed."""

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float, times: int = 1) -> None:
        """A value that was observed, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def read(self, name: str, documentation: str) -> Histogram:
        """What was observed so far."""
        total, buckets = 0, {}
        for bound, count in zip((*self.bounds, None), tuple(self.counts), strict=True):
            total += count
            buckets["+Inf" if bound is None else repr(bound)] = total
        return Histogram(name=name, documentation=documentation, count=total, sum=self.sum, buckets=buckets)


class Monitor:
    """Counts one engine's steps and requests. Reading it from another thread may miss what just came."""

    def __init__(self) -> None:
        self._histos = {name: Histo(bounds) for name, (bounds, _) in HISTOGRAMS.items()}
        self._ends: Counts[FinishReason] = Counts()
        self._prompt_tokens = self._cached_tokens = 0
        self._last = 0.0  # when the result of the step before came in

    def step_ended(self, record: StepRecord, now: float) -> None:
        """Count a step whose result has been taken in."""
        took, self._last = now - self._last, now
        if record.useful_slots:  # most often, the step before gave them a token, too
            self._histos["inter_token_latency_seconds"].add(
                took / record.num_decode_steps, record.useful_slots
            )
        self._histos["iteration_tokens_total"].add(record.tokens_used + record.useful_slots)

    def request_ended(self, request: Request, output: RequestOutput) -> None:
        """Count a request, all of whose samples have ended."""
        self._prompt_tokens += len(output.prompt_token_ids)
        self._cached_tokens += output.num_cached_tokens
        self._observe("request_prompt_tokens", len(output.prompt_token_ids))
        self._observe("request_params_n", request.params.n)
        self._observe("request_params_max_tokens", request.max_tokens)
        for sample in output.outputs:
            self._ends[sample.finish_reason] += 1
            self._observe("request_generation_tokens", len(sample.token_ids))
        if output.metrics is not None:
            self._count_times(output.metrics, len(output.outputs))

    def _count_times(self, times: RequestMetrics, num_samples: int) -> None:
        self._observe("e2e_request_latency_seconds", times.finished_ts - times.arrival_time)
        if times.scheduled_ts is not None:
            self._observe("request_queue_time_seconds", times.scheduled_ts - times.arrival_time)
        if times.first_token_ts is None or times.last_token_ts is None:
            return
        self._observe("time_to_first_token_seconds", times.first_token_ts - times.arrival_time)
        per_sample = times.num_generation_tokens / num_samples
        if per_sample > 1:
            span = times.last_token_ts - times.first_token_ts
            self._observe("request_time_per_output_token_seconds", span / (per_sample - 1))

    def _observe(self, name: str, value: float) -> None:
        self._histos[name].add(value)

    def read(self, scheduler: Scheduler, summary: Summary, compilations: int) -> list[Metric]:
        """All metrics, as they are now.

        Args:
          summary: of the engine's steps.
          compilations: after warm-up.
        """
        pool = scheduler.pool
        metrics: list[Metric] = [
            _gauge("num_requests_running", "Sequences that run.", len(scheduler.running)),
            _gauge("num_requests_waiting", "Sequences that wait.", scheduler.num_waiting),
            _gauge("kv_cache_usage_perc", "Pages in use; 1 is all.", pool.num_used / pool.num_usable),
        ]
        metrics += [_counter(*each) for each in self._counts(summary)]
        about = "Programs compiled while requests waited."
        metrics.append(_counter("compilations_after_warmup", about, compilations))
        metrics += [
            _counter(
                "request_success", "Samples that ended.", self._ends[reason], finished_reason=reason.value
            )
            for reason in FinishReason
        ]
        for name, about, account in _accounts(summary):
            metrics += [_counter(name, about, count, cause=cause) for cause, count in account.items()]
        return metrics + [
            self._histos[name].read(PREFIX + name, about) for name, (_, about) in HISTOGRAMS.items()
        ]

    def _counts(self, summary: Summary) -> list[tuple[str, str, int]]:
        return [
            ("prefix_cache_queries", "Tokens that were looked up in the prefix cache.", summary.looked_up),
            ("prefix_cache_hits", "Of these, tokens that were found.", summary.found),
            ("prompt_tokens", "Prompt tokens of requests that ended.", self._prompt_tokens),
            ("prompt_tokens_cached", "Of these, tokens that were in the cache.", self._cached_tokens),
            ("generation_tokens", "Tokens that requests were given.", summary.output_tokens),
            ("num_preemptions", "Sequences whose pages were taken.", summary.num_preempted),
            ("num_steps", "Steps of the device.", summary.num_steps),
        ]


def _accounts(summary: Summary) -> list[tuple[str, str, dict[str, int]]]:
    """Closed accounts: by cause, what was computed."""
    useful, padded = summary.useful_slot_steps, summary.padded_slots
    slots = {"useful": useful, "padding": padded, "wasted": summary.slot_steps - useful - padded}
    places = {
        "useful": useful + summary.useful_prefill_tokens,
        "padding": summary.padded,
        "wasted": summary.wasted,
        "recomputed": summary.recomputed,
    }
    return [
        ("slot_steps", "Decode slots of steps, by what became of them.", slots),
        ("step_places", "Decode slots and prompt tokens of steps, by what became of them.", places),
    ]


def _gauge(name: str, documentation: str, value: float) -> Gauge:
    return Gauge(name=PREFIX + name, documentation=documentation, value=value)


def _counter(name: str, documentation: str, value: int, **labels: str) -> Counter:
    return Counter(name=PREFIX + name, documentation=documentation, value=value, labels=labels)
