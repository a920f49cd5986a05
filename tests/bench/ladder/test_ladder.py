"""The ladder on a runner without a model: counts are exact, the same on every machine."""

import re

import pytest

from bench.ladder.arms import ARMS, choose_arms, predicted_lens
from bench.ladder.gains import gains
from bench.ladder.ladder import best_sizes, climb, offered_load, run_once, sweep, sweep_sizes
from bench.measure.account import step_rows
from bench.measure.drive import RunError, drive
from bench.measure.floor import Floor
from bench.options import Setting
from bench.results import SweepPoint
from bench.workloads.workload import WorkItem, Workload, make_workload
from jbatch.errors import ConfigError
from jbatch.host.policy import MODES
from tests.helpers.fake_subject import CountingRunner, FakeSubject

ONCE = Setting(repeats=1)


def mixed(num_prompts=48, name="mixed_length", **options):
    """The demo model's, by default too few requests for a gain."""
    options = {"length_scale": 0.25} | options
    return make_workload(name, num_prompts=num_prompts, seed=0, vocab_size=264, max_model_len=1024, **options)


@pytest.fixture(scope="module")
def default_run():
    """What `jbatch bench batching` runs by default."""
    workload = mixed(256)
    return workload, climb(FakeSubject(), list(ARMS.values()), workload, ONCE)


def test_the_order_of_the_ladder(default_run):
    _, arms = default_run
    steps = {name: arm.counts.num_steps for name, arm in arms.items()}
    assert steps["unbatched"] > steps["static"] == steps["static-padded"] > steps["continuous"]
    slots = {name: arm.counts.slot_steps for name, arm in arms.items()}
    assert slots["static-padded"] > slots["static"] >= slots["continuous"] >= slots["unbatched"]
    decode = {name: arm.counts.decode_steps for name, arm in arms.items()}
    assert (
        slots["unbatched"] == decode["unbatched"] and slots["static-padded"] == 16 * decode["static-padded"]
    )
    assert steps["static-sorted"] <= steps["static-sorted-predicted"] < steps["static"]


def test_an_oracles_sorted_batches_do_not_beat_continuous_batching_by_the_same_oracle(default_run):
    """In order of arrival they do: the longest may come last, and then they run alone."""
    _, arms = default_run
    decode = {name: arm.counts.decode_steps for name, arm in arms.items()}
    assert decode["continuous"] > decode["static-sorted"] > decode["continuous-predicted"]
    assert decode["continuous-predicted"] >= decode["continuous-sorted"]
    steps = {name: arm.counts.num_steps for name, arm in arms.items()}
    assert steps["continuous"] > steps["static-sorted"] > steps["continuous-predicted"]
    slots = {name: arm.counts.slot_steps for name, arm in arms.items()}
    assert slots["static-sorted"] >= slots["continuous-sorted"]


def test_padded_static_computes_2_9_times_the_rows_of_continuous(default_run):
    workload, arms = default_run
    ratio = arms["static-padded"].counts.slot_steps / arms["continuous"].counts.slot_steps
    assert ratio >= 2.9
    assert gains(arms, workload)["slot_steps static-padded / continuous"] == ratio


def test_the_account_is_closed_and_the_work_is_equal(default_run):
    workload, arms = default_run
    for arm in arms.values():
        counts = arm.counts
        assert counts.output_tokens == workload.num_output_tokens
        assert counts.useful_prefill_tokens == workload.num_prompt_tokens and counts.recomputed == 0
        # The first token comes from prefill, each other one from a row of a decode step.
        assert counts.useful_slot_steps == workload.num_output_tokens - len(workload.items)
        assert counts.slot_steps == counts.useful_slot_steps + counts.decode_padded + counts.decode_wasted
        for step in arm.steps:
            assert step.useful + step.padded + step.wasted + step.recomputed == step.computed
        assert len(arm.steps) == counts.num_steps


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", ["static-padded", "static-sorted", "continuous"])
@pytest.mark.parametrize("num_pages", [1024, 33])
def test_pages_replayed_are_those_of_the_pool(name, overlap, num_pages):
    """In a pool of 33 pages all preempt but padded batches, which are admitted by their worst case."""
    subject, arm, workload = FakeSubject(overlap=overlap, num_pages=num_pages), ARMS[name], mixed()
    engine = subject.new_engine(arm, 16)
    run = drive(engine, workload, predicted=predicted_lens(arm, workload))
    rows = step_rows(run, engine.scheduler.config.shape, MODES[arm.mode])
    records = [event.record for event in run.events if event.record is not None]
    assert [row.pages_used for row in rows] == [record.pages_used for record in records]
    assert all(row.kv_tokens <= row.pages_used * subject.page_size for row in rows)
    assert (engine.summary.num_preempted > 0) == (name != "static-padded" and num_pages == 33)


def test_pages_of_each_step_beside_a_contiguous_cache():
    """A contiguous cache reserves max_model_len=160, 10 pages, for each running sequence."""
    workload = Workload("two", (WorkItem((3,) * 16, 3, 0.0), WorkItem((4,) * 8, 2, 0.0)), 0, {})
    (arm,) = climb(FakeSubject(overlap=False), [ARMS["continuous"]], workload, ONCE).values()
    # Prefill of 16 and 8 tokens; both decode, and the second ends; the first decodes its last.
    assert [(step.pages_used, step.pages_contiguous) for step in arm.steps] == [(2, 20), (2, 10), (0, 0)]
    counts = arm.counts
    assert (counts.mean_pages_used, counts.mean_pages_contiguous) == (4 / 3, 10)
    assert (counts.peak_pages_contiguous, counts.kv_of_contiguous) == (20, 4 / 30)


def test_pages_hold_a_third_of_what_a_contiguous_cache_would(default_run):
    _, arms = default_run
    for name, arm in arms.items():
        assert all(step.pages_used <= step.pages_contiguous for step in arm.steps)
        running = 1 if name == "unbatched" else 16
        assert arm.counts.peak_pages_contiguous == 10 * running
        assert 0.15 < arm.counts.kv_of_contiguous < (0.25 if name == "static-padded" else 0.35)


def test_a_static_batch_that_waits_to_be_full():
    """On a clock with real time: 6 requests, 4 at once; the last two wait for their time."""
    items = tuple(WorkItem((3 + number,) * 8, 4, at) for number, at in enumerate([0, 0, 0, 0.05, 0.1, 0.1]))
    subject = FakeSubject(max_num_seqs=4, batch_wait_timeout_s=0.2)
    arms = climb(subject, choose_arms(["static", "static-full"]), Workload("six", items, 0, {}), ONCE)
    full, static = arms["static-full"], arms["static"]
    assert [row.could_start for row in full.requests[:4]] == [0.05] * 4
    assert all(row.scheduled >= 0.05 for row in full.requests[:4])
    assert all(0.25 < row.could_start < 0.3001 for row in full.requests[4:])
    assert all(row.first_token > 0.25 for row in full.requests[4:])
    assert full.counts.decode_steps == 6 <= static.counts.decode_steps, (
        "two batches; 3 tokens after the first"
    )
    assert full.latencies.fill.p99 > 150 and static.latencies.fill.p99 == 0
    assert full.rates.idle_s <= 0.05, "a batch that fills is no idle time"


def test_rows_name_the_requests():
    result = climb(FakeSubject(), [ARMS["static-padded"]], mixed(), ONCE)["static-padded"]
    prefill = next(step for step in result.steps if step.kind == "prefill")
    assert sorted(number for _, number, _ in prefill.rows) == list(range(len(prefill.rows)))
    held = [slot for step in result.steps for slot in step.rows if slot[2]]
    wasted = sum(step.wasted for step in result.steps)
    assert held and wasted == len(held)


def test_every_step_has_its_floor():
    floor = Floor(
        1e9, 1e12, layer_params=10**6, head_params=10**5, itemsize=2, kv_bytes_per_token=64, flop_per_pair=8
    )
    subject = FakeSubject(floor=floor)
    workload = Workload("two", (WorkItem((3,) * 16, 3, 0.0), WorkItem((4,) * 8, 2, 0.0)), 0, {})
    (arm,) = climb(subject, [ARMS["continuous"]], workload, ONCE).values()
    weights_s = 2 * 1.1e6 / 1e9
    # Prefill computes 24 tokens; then both decode, with caches of 17 and 9; then one, with 18.
    keys = {0: 24, 1: 26, 2: 18}
    for number, step in enumerate(arm.steps):
        assert step.floor_s == pytest.approx(weights_s + keys[number] * 64 / 1e9)
    assert arm.rates.floor_share == pytest.approx(sum(s.floor_s for s in arm.steps) / arm.rates.duration_s)


def test_repeats_take_turns_and_the_median_is_shown():
    order, rounds = [], []

    class Subject(FakeSubject):
        def new_engine(self, arm, max_num_seqs):
            order.append((arm.name, max_num_seqs))
            return super().new_engine(arm, max_num_seqs)

    arms = choose_arms(["continuous", "unbatched"])
    results = climb(Subject(), arms, mixed(8), Setting(repeats=3), on_round=rounds.append)
    assert order == [("unbatched", 1), ("continuous", 16)] * 3
    assert [len(so_far["continuous"].repeats) for so_far in rounds] == [1, 2, 3]
    shown = results["continuous"]
    assert shown.rates.output_throughput == sorted(shown.repeats)[1]
    assert shown.spread == pytest.approx((max(shown.repeats) - min(shown.repeats)) / sorted(shown.repeats)[1])


class Failing(FakeSubject):
    """Its second engine breaks in the middle."""

    num_engines = 0

    def new_engine(self, arm, max_num_seqs):
        self.num_engines += 1
        self.runner = BreaksAtStep5 if arm.name == "static" else CountingRunner
        return super().new_engine(arm, max_num_seqs)


class BreaksAtStep5(CountingRunner):
    def submit(self, step):
        if self.num_steps == 5:
            raise RuntimeError("out of memory")
        return super().submit(step)


def test_an_arm_that_fails_is_a_row_and_takes_nobody_along():
    subject, said = Failing(), []
    results = climb(subject, list(ARMS.values()), mixed(16), Setting(repeats=2), say=said.append)
    assert results["static"].not_run == "repeat 1: RuntimeError: out of memory"
    assert results["static"].to_json().keys() == {"label", "definition", "not_run"}
    others = [arm for name, arm in results.items() if name != "static"]
    assert all(arm.not_run is None and len(arm.repeats) == 2 for arm in others)
    assert subject.num_rebuilt == 1, "it is not tried again"
    assert len(said) == 2 * len(ARMS) - 1
    assert re.fullmatch(
        rf"pass 1 of {2 * len(ARMS)}: unbatched, 1 at once: [\d,]+ output tokens/s in [\d.]+ s", said[0]
    )
    (failed,) = (line for line in said if "failed" in line)
    assert failed.endswith(": static, 16 at once, failed: repeat 1: RuntimeError: out of memory")
    assert "static was not run" in gains(results, mixed(16))["refused"]


def test_repeats_that_ended_are_kept_when_a_later_one_fails():
    """And when the model cannot be built again."""

    class Dies(FakeSubject):
        num_engines = 0

        def new_engine(self, arm, max_num_seqs):
            self.num_engines += 1
            if self.num_engines > 2:
                raise RuntimeError("device lost")
            return super().new_engine(arm, max_num_seqs)

        def rebuild(self):
            raise MemoryError("no room")

    results = climb(Dies(), choose_arms(["static", "continuous"]), mixed(8), Setting(repeats=3))
    for arm in results.values():
        assert arm.not_run is None and len(arm.repeats) == 1
        assert (
            arm.extra["failed"] == "repeat 2: RuntimeError: device lost; building anew: MemoryError: no room"
        )


def test_a_request_that_is_refused_fails_its_arm_clearly():
    result = climb(FakeSubject(max_model_len=64), [ARMS["continuous"]], mixed(), ONCE)["continuous"]
    assert "RequestError: prompt_token_ids + max_tokens" in result.not_run


def test_a_request_that_ends_early_fails_the_pass():
    class EndsEarly(CountingRunner):
        def _draw(self, idx, row, context, output):
            super()._draw(idx, row, context, output)
            output.status[idx] = 3  # not finite

    with pytest.raises(
        RunError, match=r"request 0 ended with 1 of \d+ tokens, finish_reason='error': logits"
    ):
        run_once(FakeSubject(runner=EndsEarly), ARMS["unbatched"], 1, mixed(2), ONCE)


def test_a_sweep_runs_each_arm_at_each_size_and_finds_its_best():
    arms, said = choose_arms(["unbatched", "continuous"]), []
    curves = sweep(FakeSubject(max_num_seqs=8), arms, mixed(24), ONCE, said.append)
    assert [line.split(":")[1] for line in said] == [
        " unbatched, 1 at once",
        *(f" continuous, {size} at once" for size in (2, 4, 8)),
    ]
    assert [point.max_num_seqs for point in curves["unbatched"]] == [1]
    assert [point.max_num_seqs for point in curves["continuous"]] == [2, 4, 8] == sweep_sizes(8)
    assert best_sizes({"a": [SweepPoint(2, 5.0), SweepPoint(4, 9.0), SweepPoint(8, 7.0)], "b": []}) == {
        "a": 4
    }
    for name, curve in curves.items():
        for point in curve:
            alone = run_once(FakeSubject(max_num_seqs=8), ARMS[name], point.max_num_seqs, mixed(24), ONCE)
            assert (point.slot_use, point.kv_of_contiguous) == (
                alone.counts.slot_use,
                alone.counts.kv_of_contiguous,
            )
            assert (
                point.output_throughput > 0
                and 0 < point.p50_ttft_ms <= point.p50_e2el_ms <= point.p99_e2el_ms
            )
    sizes = {"continuous": 4}
    result = climb(FakeSubject(max_num_seqs=8), [ARMS["continuous"]], mixed(24), ONCE, sizes)["continuous"]
    assert result.max_num_seqs == 4 and max(step.slots_used for step in result.steps) == 4


def test_sorted_batches_hold_like_lengths():
    workload = mixed(64)
    result = run_once(FakeSubject(), ARMS["static-sorted"], 16, workload, ONCE)
    first = next(step for step in result.steps if step.kind == "decode").rows
    shortest = sorted(item.output_len for item in workload.items)[16]
    assert all(workload.items[number].output_len <= shortest for _, number, _ in first)
    noisy, exact = (
        predicted_lens(ARMS[name], workload) for name in ("static-sorted-predicted", "static-sorted")
    )
    assert exact == [item.output_len for item in workload.items] != noisy
    assert noisy == predicted_lens(ARMS["static-sorted-predicted"], workload)
    assert predicted_lens(ARMS["static"], workload) is None


def test_an_offered_load_rescales_arrivals_to_capacity():
    workload = mixed(32, request_rate=3.0, time_scale=2.0)
    scaled, capacity, factor = offered_load(FakeSubject(), workload, ARMS["continuous"], 1.5)
    span = scaled.items[-1].arrival - scaled.items[0].arrival
    assert span == pytest.approx(32 / (1.5 * capacity))
    assert scaled.scales["time_scale"] == pytest.approx(2.0 * factor) and scaled.scales["load"] == 1.5
    assert [item[:2] for item in scaled.items] == [item[:2] for item in workload.items]


def test_a_load_needs_arrivals():
    with pytest.raises(ConfigError, match=r"load=1.5: rescales arrivals, and these come all at once"):
        offered_load(FakeSubject(), mixed(4), ARMS["continuous"], 1.5)


def test_unknown_arms_are_refused():
    with pytest.raises(ConfigError, match="arms='dynamic': must be one of unbatched, static,"):
        choose_arms(["dynamic"])
