"""Metrics of several engines as those of one."""

from jbatch.engine.merged import merged
from jbatch.engine.metric import Counter, Gauge, Histogram
from jbatch.sampling_params import SamplingParams
from tests.helpers.replicas import make_replicas


def test_counts_are_sums_and_shares_are_means():
    def metrics(value):
        return [
            Counter(name="c", documentation="", value=value),
            Gauge(name="g", documentation="", value=value),
            Gauge(name="use_perc", documentation="", value=value),
            Histogram(
                name="h", documentation="", count=value, sum=0.5, buckets={"1": value - 1, "+Inf": value}
            ),
        ]

    counter, gauge, share, histogram = merged([metrics(2), metrics(4)])
    assert (counter.value, gauge.value, share.value) == (6, 6, 3)
    assert (histogram.count, histogram.sum, histogram.buckets) == (6, 1.0, {"1": 4, "+Inf": 6})


def test_those_in_the_queue_wait_too():
    replicas = make_replicas(2)
    for idx in range(9):
        replicas.add_request(str(idx), [1, idx], SamplingParams(max_tokens=2))
    by_name = {metric.name: metric.value for metric in replicas.metrics(3) if hasattr(metric, "value")}
    assert by_name["jbatch:num_requests_waiting"] == 9 and by_name["jbatch:compilations_after_warmup"] == 3
    while replicas.has_unfinished:
        replicas.step()
    by_name = {metric.name: metric.value for metric in replicas.metrics(3) if hasattr(metric, "value")}
    assert (by_name["jbatch:num_requests_waiting"], by_name["jbatch:generation_tokens"]) == (0, 18)
