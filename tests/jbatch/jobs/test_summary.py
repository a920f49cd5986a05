"""What a run reports: counts, latencies, the time that is left."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest

from jbatch.engine.eta import TokensLeft, duration, span
from jbatch.host.metrics import StepRecord, summarise
from jbatch.jobs.summary import Histogram, JobSummary, describe
from jbatch.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput


def output(num_tokens: int, reason=FinishReason.STOP, n=1, prompt=(1, 2), **times) -> RequestOutput:
    given = dict(arrival_time=1.0, scheduled_ts=1.5, first_token_ts=2.0, last_token_ts=2.9, finished_ts=3.0)
    metrics = RequestMetrics(**{**given, **times}, num_generation_tokens=n * num_tokens, num_preemptions=0)
    outputs = [CompletionOutput(idx, "", [0] * num_tokens, reason) for idx in range(n)]
    return RequestOutput("r", None, list(prompt), outputs, metrics=metrics)


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_percentiles_are_right_to_one_percent(spread):
    rng, histogram = random.Random(1), Histogram()
    values = [rng.lognormvariate(-3, spread) for _ in range(5000)]
    for value in values:
        histogram.add(value)
    for percent in (1, 50, 90, 99, 100):
        exact = np.percentile(values, percent, method="inverted_cdf")
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.0101)
    assert histogram.mean == pytest.approx(np.mean(values))


def test_a_histogram_of_nothing_and_of_extremes():
    histogram = Histogram()
    assert math.isnan(histogram.percentile(50)) and math.isnan(histogram.mean)
    for value in (0.0, -1.0, 1e-9, 1e6):
        histogram.add(value)
    assert histogram.percentile(50) == pytest.approx(1e-6, rel=0.02)
    assert histogram.percentile(99) == pytest.approx(1e6, rel=0.02)


def test_figures():
    summary = JobSummary()
    summary.add([output(10)])
    summary.add([output(4, FinishReason.LENGTH, n=2, prompt=(1, 2, 3))])
    summary.add([output(0, FinishReason.LENGTH, first_token_ts=None, last_token_ts=None)])
    summary.add_error("context_length", "line 4: too long")
    decode = StepRecord(0, 4, 3, 0, 0, 3, 0, 1, 0, 0, 3, 1, 3, 0, 2)
    prefill = StepRecord(1, 0, 0, 40, 30, 0, 30, 10, 0, 0, 3, 1, 3, 0, 0)
    figures = summary.figures(summarise([decode, prefill]), 2.0, 0)
    expected = {
        "completed": 3,
        "failed": 1,
        "finish_reasons": {"stop": 1, "length": 3},
        "errors": {"context_length": 1},
        "total_input_tokens": 7,
        "total_output_tokens": 18,
        "request_throughput": 1.5,
        "output_throughput": 9.0,
        "total_token_throughput": 12.5,
        "slot_use": 0.75,
        "prefill_padding": 0.25,
        "preemptions": 2,
        "compilations_after_warmup": 0,
    }
    assert expected.items() <= json.loads(json.dumps(figures, allow_nan=False)).items()
    assert figures["p50_ttft_ms"] == pytest.approx(1000, rel=0.01)
    assert figures["p99_e2el_ms"] == pytest.approx(2000, rel=0.01)
    assert summary.latencies["e2el"].count == summary.latencies["ttft"].count == 2, "of the same requests"
    assert figures["p50_tpot_ms"] == pytest.approx(100, rel=0.01), "900 ms between 10 tokens"
    assert figures["p99_tpot_ms"] == pytest.approx(300, rel=0.01), "between 4 of each sample"
    lines = describe(figures)
    assert lines[0] == (
        "3 lines answered (samples: 3 length, 1 stop), 1 line with errors (1 context_length) in 2.0 s; "
        "first: line 4: too long"
    )
    assert lines[1] == "7 prompt and 18 output tokens; 1.5 requests/s, 9 output tokens/s"
    assert lines[2].startswith("TTFT p50/p90/p99 ") and len(lines) == 4


def test_hits_are_said_beside_those_that_could_be_reached():
    """Looked up twice, after a preemption: half of that was found; of the prompt, a quarter."""
    summary = JobSummary()
    summary.add([dataclasses.replace(output(10), prompt_token_ids=[1] * 8, num_cached_tokens=2)])
    found = StepRecord(0, 4, 3, 0, 0, 3, 0, 1, 0, 0, 3, 1, 3, 0, 2, looked_up=1000, found=500, reachable=875)
    figures = summary.figures(summarise([found]), 2.0, 0)
    assert figures["reachable_prefix_hit_rate"] == 0.875
    assert figures["total_cached_tokens"] == 2
    said = "25% of prompt tokens from the cache (50% of those looked up, 88% in one that forgets nothing)"
    assert said in describe(figures)[-1]


def test_defaults_of_the_model_are_said():
    summary = JobSummary({"temperature": 0.6, "top_k": 20})
    summary.add([output(10)])
    figures = summary.figures(summarise([]), 2.0, 0)
    assert json.loads(json.dumps(figures))["model_defaults"] == {"temperature": 0.6, "top_k": 20}
    said = "from the model's generation_config.json, where not set: temperature=0.6, top_k=20"
    assert describe(figures)[-1] == said


def test_a_run_without_answers():
    figures = JobSummary().figures(summarise([]), 0.0, 0)
    assert figures["p50_ttft_ms"] is None and json.dumps(figures, allow_nan=False)
    assert describe(figures) == ["0 lines answered, 0 lines with errors in 0.0 s"]


def test_outputs_that_are_mostly_cut_off():
    summary = JobSummary()
    assert not summary.mostly_length
    for reason, mostly in (("length", True), ("stop", False), ("length", True), ("stop", False)):
        summary.add([output(1, FinishReason(reason))])
        assert summary.mostly_length == mostly


def test_a_number_of_tokens_that_was_asked_for_cuts_nothing_off():
    summary = JobSummary()
    summary.add([output(1, FinishReason.LENGTH)], may_end_early=False)
    assert not summary.mostly_length and summary.finish_reasons["length"] == 1
    summary.add([output(1, FinishReason.LENGTH)])
    assert summary.mostly_length and (summary.num_cut_off, summary.num_may_end_early) == (1, 1)


def test_memory_does_not_grow():
    summary, rng = JobSummary(), random.Random(0)
    for _ in range(5000):
        summary.add([output(5, finished_ts=1 + rng.lognormvariate(0, 20))])
    assert all(len(histogram._buckets) < 1500 for histogram in summary.latencies.values())


# The time that is left.


def test_before_anything_has_ended_a_line_takes_its_bound():
    left = TokensLeft(mean_bound=10, num_lines=4)
    assert left.left == 40
    left.begin(6, 6)
    left.add(2)
    assert left.left == 6 + 30 - 2 and left.note(2.0) == "1 tokens/s, 0:00:34 left"


def test_afterwards_it_takes_the_share_that_others_took():
    left = TokensLeft(mean_bound=10, num_lines=4)
    for bound in (10, 10):
        left.begin(bound, bound)
    left.add(5)
    left.end(10, 5)  # half of its bound
    assert left.left == 0.5 * (10 + 20)
    left.skip()
    assert left.left == 0.5 * (10 + 10)
    left.add(9)
    left.end(10, 9)
    left.begin(10, 10)
    left.end(10, 0)
    assert left.left == 0 and left.num_tokens == 14


def test_once_lines_have_ended_the_time_left_is_a_range():
    """Eight lines took 10 or 30 tokens of 40: 20 on average, give or take 10. Twelve more are to come."""
    left = TokensLeft(mean_bound=40, num_lines=20)
    for number in range(8):
        assert left.range is None
        left.begin(40, 40)
        left.add(10 + 20 * (number % 2))
        left.end(40, 10 + 20 * (number % 2))
    low, high = left.range
    off = 1.2816 * 10 * (12 + 12**2 / 8) ** 0.5
    assert (low, high) == (pytest.approx(240 - off), pytest.approx(240 + off)) and left.left == 240
    assert left.note(1.0) == "160 tokens/s, 1-2 s left" and left.note(160.0) == "1 tokens/s, 3-5 min left"


def test_where_all_lines_take_the_same_the_range_is_a_number():
    left = TokensLeft(mean_bound=40, num_lines=20)
    for _ in range(8):
        left.begin(40, 40)
        left.add(10)
        left.end(40, 10)
    assert left.range == (120, 120) and left.note(80.0) == "1 tokens/s, 2 min left"


def test_what_is_predicted_narrows_the_range():
    """Eight lines took 10 or 30 tokens, and a predictor said 20 or 60: half of it is what they take."""
    left = TokensLeft(mean_bound=80, num_lines=20)
    for number in range(8):
        tokens = 10 + 20 * (number % 2)
        left.begin(80, 2 * tokens)
        left.add(tokens)
        left.end(2 * tokens, tokens)
    assert left.range == (pytest.approx(240), pytest.approx(240)), "lines that are alike: 20 tokens each"
    left.begin(80, 60)
    assert left.left == pytest.approx(30 + 11 * 0.5 * (8 * 40 + 60) / 9)


@pytest.mark.parametrize(
    "low, high, text",
    [(40, 55, "40-55 s"), (80, 100, "1-2 min"), (180, 301, "3-5 min"), (5000, 9000, "1.4-2.5 h")],
)
def test_spans_for_people(low, high, text):
    assert span(low, high) == text


def test_an_estimate_that_was_passed_is_none_left():
    left = TokensLeft(mean_bound=10, num_lines=2)
    left.begin(10, 10)
    left.begin(10, 10)
    left.end(10, 0)
    left.add(3)
    assert left.left == 0 and left.note(0.0) == ""


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (360000, "4 d 4:00:00")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
