"""Figures of a pass that was written down by hand."""

import pytest

from bench.measure import measures
from bench.measure.drive import Run
from bench.options import parse_goodput
from bench.results import Spread
from bench.workloads.workload import WorkItem, Workload
from jbatch.errors import ConfigError
from jbatch.host.metrics import Summary

ITEMS = (WorkItem((3,) * 10, 3, 0.0), WorkItem((4,) * 6, 1, 2.0))
RUN = Run(
    workload=Workload("two", ITEMS, 0, {}),
    events=[],
    arrivals=[0.0, 2.0],
    token_times=[[0.1, 0.2, 0.5], [2.4]],
    token_ids=[[7, 8, 9], [7]],
    duration_s=2.5,
    idle_s=1.5,
    summary=Summary(),
)


def test_latencies_by_hand():
    latencies = measures.latencies(RUN)
    assert latencies.ttft.mean == pytest.approx((100 + 400) / 2) and latencies.ttft.p50 == pytest.approx(250)
    assert latencies.tpot == Spread(*[pytest.approx(400 / 2)] * 4), "of the request with more than one token"
    assert latencies.itl.mean == pytest.approx((100 + 300) / 2)
    assert latencies.e2el.mean == pytest.approx((500 + 400) / 2)
    written = latencies.to_json()
    assert written["p50_e2el_ms"] == pytest.approx(450) and written["p99_ttft_ms"] == pytest.approx(397)
    assert set(written) == {
        f"{part}_{name}_ms"
        for part in ("mean", "p50", "p90", "p99")
        for name in ("ttft", "tpot", "itl", "e2el", "fill", "queue", "prefill", "decode")
    }
    assert written["mean_fill_ms"] is None, "nobody noted when the requests were scheduled"


def test_rates_are_per_second_of_busy_time():
    rates = measures.rates(RUN, [], {"ttft": 200.0})
    assert rates.request_throughput == pytest.approx(2.0) and rates.output_throughput == pytest.approx(4.0)
    assert rates.total_token_throughput == pytest.approx(20.0)
    assert rates.request_goodput == pytest.approx(1.0)
    assert rates.device_busy_share is None and rates.floor_share is None
    assert measures.rates(RUN, []).request_goodput is None


def test_goodput_counts_requests_within_all_limits():
    assert measures.num_within(RUN, {"ttft": 400.1}) == 2
    assert measures.num_within(RUN, {"ttft": 400.1, "tpot": 199.0}) == 1, "one token has no TPOT"
    assert measures.num_within(RUN, {"e2el": 399.0}) == 0


def test_nothing_has_no_spread():
    assert measures.spread([None, None]) is None


def test_limits_are_parsed_as_vllm_writes_them():
    assert parse_goodput(["ttft:200 tpot:50.5", "e2el:1000"]) == {"ttft": 200.0, "tpot": 50.5, "e2el": 1000.0}
    assert parse_goodput([]) == {}


@pytest.mark.parametrize(
    "text, message",
    [
        ("itl:5", "goodput='itl:5': must limit one of ttft, tpot, e2el"),
        ("ttft", "must name a number of milliseconds"),
        ("ttft:soon", "must name a number of milliseconds"),
        ("ttft:-1", "must be above 0"),
    ],
)
def test_bad_limits(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_goodput([text])
