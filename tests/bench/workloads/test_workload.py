"""Workloads are drawn from a seed, fit the model, and say what was changed."""

import math

import numpy as np
import pytest

from bench.workloads import lengths
from bench.workloads.arrivals import BURST_INTERVAL_S, at_rate
from bench.workloads.workload import WorkloadError, check_options, make_workload
from jbatch.errors import ConfigError

BASE = dict(num_prompts=256, seed=0, vocab_size=264, max_model_len=2048)


def make(name="mixed_length", **changes):
    return make_workload(name, **{**BASE, **changes})


def lens(workload):
    prompts = np.array([len(item.prompt_token_ids) for item in workload.items])
    return prompts, np.array([item.output_len for item in workload.items])


DRAWN = [name for name in lengths.NAMES if name != "trace"]


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_arguments_give_the_same_work_and_another_seed_other_work(name):
    first = make(name)
    assert first == make(name) and first.hash == make(name).hash
    assert first.hash != make(name, seed=1).hash
    assert len(first.items) == BASE["num_prompts"] and first.longest <= BASE["max_model_len"]
    prompts, outputs = lens(first)
    assert prompts.min() >= 1 and outputs.min() >= 1
    assert first.num_prompt_tokens == prompts.sum() and first.num_output_tokens == outputs.sum()
    ids = {token for item in first.items for token in item.prompt_token_ids}
    assert min(ids) >= 3 and max(ids) < BASE["vocab_size"]


@pytest.mark.parametrize("name", DRAWN)
def test_no_two_prompts_are_equal(name):
    items = make(name, length_scale=1 / 16).items  # a prefix cache would be served by short ones first
    assert len({item.prompt_token_ids for item in items}) == len(items)


def test_the_hash_is_of_lengths_ids_and_arrivals():
    workload = make(num_prompts=4)
    first, *rest = workload.items
    for changed in (
        first._replace(output_len=first.output_len + 1),
        first._replace(prompt_token_ids=(3, *first.prompt_token_ids[1:], 4)),
        first._replace(arrival=1.0),
    ):
        assert workload._replace(items=(changed, *rest)).hash != workload.hash


def test_uniform_short_is_what_it_says():
    for drawn in lens(make("uniform_short", num_prompts=4000)):
        assert (drawn.min(), drawn.max()) == (32, 96) and abs(drawn.mean() - 64) < 1.5


def test_mixed_length_is_what_it_says():
    prompts, outputs = lens(make(num_prompts=4000))
    assert (prompts.min(), prompts.max()) == (16, 64)
    long = outputs > 64
    assert abs(long.mean() - 0.2) < 0.03
    assert (outputs[~long].min(), outputs[~long].max()) == (16, 64)
    assert (outputs[long].min(), outputs[long].max()) == (256, 512)


def test_a_scale_divides_the_same_lengths():
    whole, quarter = lens(make()), lens(make(length_scale=0.25))
    for big, small in zip(whole, quarter, strict=True):
        assert (small == np.maximum(1, np.rint(big / 4))).all()
    assert make(length_scale=0.25).scales == {"length_scale": 0.25, "time_scale": 1.0}


def test_bursts_hold_eight_batches_each():
    workload = make("bursty_traffic", num_prompts=300, burst_size=8 * 16)
    times, sizes = np.unique([item.arrival for item in workload.items], return_counts=True)
    assert times.tolist() == [0, BURST_INTERVAL_S] and sizes.tolist() == [150, 150]
    assert lens(workload)[1].tolist() == lens(make(num_prompts=300))[1].tolist()
    alone = make("bursty_traffic", num_prompts=100, burst_size=128)
    assert {item.arrival for item in alone.items} == {0.0}


def test_random_is_symmetric_about_its_lengths():
    ratio = make("random", num_prompts=4000, input_len=100, output_len=10, random_range_ratio=0.5)
    prompts, outputs = lens(ratio)
    assert (prompts.min(), prompts.max(), outputs.min(), outputs.max()) == (50, 150, 5, 15)
    prompts, outputs = lens(make("random", input_len=100, output_len=10))
    assert set(prompts) == {100} and set(outputs) == {10}


def test_nano_and_sharegpt_like():
    prompts, outputs = lens(make("nano", num_prompts=1000))
    assert prompts.min() >= 100 and prompts.max() <= 1024 and abs(outputs.mean() - 562) < 30
    capped = lens(make("sharegpt-like", num_prompts=4000))
    assert all(drawn.max() == 1024 for drawn in capped)
    assert 140 < capped[0].mean() < 165 and 270 < capped[1].mean() < 338  # the cap takes some
    workload = make("sharegpt-like", max_model_len=256)
    assert workload.longest <= 256 and workload.scales["capped"] > 100


def test_prefixes_are_shared_in_turn():
    workload = make("prefix", input_len=16, prefix_len=32, num_prefixes=4)
    starts = [item.prompt_token_ids[:32] for item in workload.items]
    assert len(set(starts)) == 4 and starts[0] == starts[4] != starts[1]
    assert {len(item.prompt_token_ids) for item in workload.items} == {48}


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_burstiness(burstiness):
    times = at_rate(20_000, 5.0, burstiness, np.random.default_rng(0))
    gaps = np.diff(times)
    assert times[0] == 0 and (gaps >= 0).all()
    assert abs(gaps.mean() - 0.2) < 0.01
    assert abs(gaps.std() / gaps.mean() - burstiness**-0.5) < 0.1


def test_an_open_loop_changes_times_alone():
    closed, open_loop = make(), make(request_rate=10.0, time_scale=2.0)
    assert {item.arrival for item in closed.items} == {0.0}
    assert [item[:2] for item in closed.items] == [item[:2] for item in open_loop.items]
    assert open_loop.items[-1].arrival == pytest.approx(2 * 256 / 10, rel=0.3)
    assert open_loop.scales["request_rate"] == 10.0 and open_loop.scales["time_scale"] == 2.0
    assert {i.arrival for i in make("bursty_traffic", closed=True).items} == {0.0}


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("mixed", {}, "dataset_name='mixed': must be one of uniform_short, mixed_length"),
        ("nano", {"max_model_len": 512}, "does not fit max_model_len=512; lower --length-scale"),
        ("random", {"input_len": 0}, "input_len=0: must be an integer from 1"),
        ("random", {"random_range_ratio": 1.0}, "random_range_ratio=1.0: must be at least 0, below 1"),
        ("random", {"request_rate": 0.0}, "request_rate=0.0: must be a number above 0"),
        ("random", {"length_scale": -1.0}, "length_scale=-1.0: must be a number above 0"),
        ("random", {"burstiness": math.nan}, "burstiness=nan: must be a number above 0"),
        ("random", {"num_prompts": 0}, "num_prompts=0"),
        ("trace", {}, "a trace needs a file: --dataset-path"),
    ],
)
def test_what_cannot_be_made_is_refused(name, changes, message):
    with pytest.raises((ConfigError, WorkloadError), match=message.replace("(", r"\(")):
        make(name, **changes)


def test_an_option_is_of_some_workloads():
    check_options(["nano", "random"], {"input_len": 9, "length_scale": 0.5})
    assert "input_len" in make("random", input_len=9).scales
    assert "input_len" not in make("nano", input_len=9).scales
    with pytest.raises(ConfigError, match="burst_size=9: is of bursty_traffic only, not of nano, trace"):
        check_options(["nano", "trace"], {"burst_size": 9})


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("bursty_traffic", {"burst_size": 4, "closed": True}, "burst_size=4: with --closed all arrive at"),
        ("random", {"request_rate": 2.0, "closed": True}, "request_rate=2.0: with --closed all arrive at"),
        ("trace", {"time_scale": 2.0, "closed": True}, "time_scale=2.0: with --closed all arrive at time 0"),
        (
            "bursty_traffic",
            {"burst_size": 4, "request_rate": 2.0},
            "burst_size=4: with --request-rate",
        ),
        ("random", {"burstiness": 0.5}, "burstiness=0.5: is of arrivals at a rate: give --request-rate"),
        ("trace", {"burstiness": 0.5, "request_rate": math.inf}, "burstiness=0.5: is of arrivals at a rate"),
        ("nano", {"time_scale": 2.0}, "time_scale=2.0: all arrive at time 0: give --request-rate"),
    ],
)
def test_what_would_be_ignored_of_arrivals_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        check_options([name], options)


def test_options_of_arrivals_that_go_together():
    check_options(["trace", "nano"], {"time_scale": 2.0})
    check_options(["bursty_traffic"], {"burst_size": 4, "time_scale": 2.0})
    check_options(["random"], {"request_rate": 2.0, "burstiness": 0.5, "time_scale": 2.0})
    check_options(["random"], {"closed": True})


def test_too_few_distinct_prompts_are_an_error():
    with pytest.raises(WorkloadError, match="no two are equal cannot be drawn"):
        make("random", input_len=1, vocab_size=100)


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="did you mean 'request_rate'"):
        make(request_rat=1.0)
