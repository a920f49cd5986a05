"""When a gain may be named, and when not."""

import dataclasses

import pytest

from bench.ladder import gain_tables
from bench.ladder.gains import CLAIMS, gains, open_loop, worst_range
from bench.results import ArmResult, Counts, Rates, Results
from bench.workloads.lengths import SCENARIOS
from bench.workloads.workload import make_workload
from jbatch.cli.tables import Page

WORKLOAD = make_workload("random", num_prompts=64, seed=0, vocab_size=99, max_model_len=256)


def arm(*speeds, slot_steps=100, size=4, prompt_tokens=WORKLOAD.num_prompt_tokens, compiled=0):
    counts = dict.fromkeys((field.name for field in dataclasses.fields(Counts)), 0)
    rates = dict.fromkeys((field.name for field in dataclasses.fields(Rates)), 0.0)
    return ArmResult(
        "label",
        "definition",
        max_num_seqs=size,
        counts=Counts(**counts | {"slot_steps": slot_steps, "num_steps": slot_steps // 4}),
        rates=Rates(**rates | {"output_throughput": speeds[0]}),
        repeats=speeds,
        extra={"least_prompt_tokens": prompt_tokens, "most_compilations": compiled},
    )


def arms(**changed):
    every = {"unbatched": arm(10.0), "static": arm(25.0), "static-padded": arm(20.0, slot_steps=400)}
    return every | {"static-sorted": arm(40.0), "continuous": arm(50.0)} | changed


def test_ratios_are_of_throughput_and_of_counted_rows():
    named = gains(arms(), WORKLOAD)
    assert named["continuous / unbatched"] == 5.0 and named["static / unbatched"] == 2.5
    assert named["continuous / static"] == 2.0 and named["continuous / static-padded"] == 2.5
    assert named["continuous / static-sorted"] == 1.25
    assert named["slot_steps static-padded / continuous"] == 4.0
    assert named["num_steps static / continuous"] == 1.0


def test_a_gain_is_the_median_of_the_ratios_within_a_repeat():
    """The second repeat was in a slow spell, the third in one that only hit static."""
    changed = {"continuous": arm(100.0, 10.0, 100.0), "static": arm(50.0, 4.0, 5.0)}
    assert gains(arms(**changed), WORKLOAD)["continuous / static"] == 2.5
    assert worst_range(arms(**changed)) == pytest.approx((20 - 2) / 2.5)


def test_every_scenario_has_its_claim():
    assert tuple(CLAIMS) == SCENARIOS


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"static-padded": ArmResult("", "", not_run="no memory")},
            "static-padded was not run, and a gain names",
        ),
        ({"continuous": arm(50.0, size=5)}, "64 requests are fewer than 16 batches of 5"),
        (
            {"static": arm(25.0, prompt_tokens=WORKLOAD.num_prompt_tokens - 7)},
            "static computed 7 prompt tokens too",
        ),
        ({"continuous": arm(50.0, compiled=2)}, "continuous compiled 2 programs in a repeat"),
    ],
)
def test_refusals_say_why(changed, message):
    answer = gains(arms(**changed), WORKLOAD)
    assert answer.keys() == {"refused"} and message in answer["refused"]


def test_no_gain_without_a_static_baseline():
    without = arms()
    del without["static"]
    assert "static was not run" in gains(without, WORKLOAD)["refused"]


def test_no_gain_in_an_open_loop():
    changed = WORKLOAD._replace(scales={"request_rate": 5.0})
    assert "in an open loop throughput follows the arrivals" in gains(arms(), changed)["refused"]
    assert "in an open loop" in gains(arms(), WORKLOAD._replace(name="trace"))["refused"]


@pytest.mark.parametrize(
    "name, scales, is_open",
    [
        ("random", {"request_rate": 5.0}, True),
        ("random", {"request_rate": 5.0, "closed": True}, False),  # --closed wins
        ("trace", {}, True),
        ("trace", {"closed": True}, False),
        ("bursty_traffic", {"time_scale": 1.0}, False),  # bursts are far apart
        ("bursty_traffic", {"time_scale": 0.001}, True),
        ("bursty_traffic", {"time_scale": 1.0, "load": 1.5}, True),
        ("mixed_length", {"time_scale": 2.0}, False),
    ],
)
def test_which_loops_are_open(name, scales, is_open):
    assert open_loop(WORKLOAD._replace(name=name, scales=scales)) == is_open


def test_no_gain_where_batches_are_not_filled():
    assert "max_concurrency=3 does not fill batches of 4" in gains(arms(), WORKLOAD, 3)["refused"]
    assert "refused" not in gains(arms(), WORKLOAD, 4)


def test_one_repeat_has_no_spread(capsys):
    assert worst_range(arms()) is None
    results = Results("batching", {}, {"name": "random"}, arms(), gains=gains(arms(), WORKLOAD))
    gain_tables.print_gains(Page(), [results], details=True)
    assert "one repeat: no spread is known" in capsys.readouterr().out
