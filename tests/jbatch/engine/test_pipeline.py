"""Steps of an engine on a fake device: what they do, and what they account for."""

import itertools

import pytest

from jbatch.errors import UserFunctionError
from jbatch.host.limits import StepLimits
from jbatch.host.policy import MODES
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import continuation
from tests.helpers import tiny_engine
from tests.helpers.pencil_engine import PROMPT, TOKENS, make_engine
from tests.helpers.schedules import VOCAB_SIZE
from tests.helpers.tiny_engine import drain

# Aborts.


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("after", range(6))
def test_abort_in_every_state(after, overlap):
    """Of one that waits, prefills, decodes or has ended; twice; and of an unknown one."""
    engine = make_engine(num_rows=1, overlap=overlap)
    engine.add_request("a", PROMPT, SamplingParams(max_tokens=4))
    engine.add_request("b", PROMPT, SamplingParams(max_tokens=4))
    outputs = {}
    for _ in range(after):
        outputs |= {output.request_id: output for output in engine.step().outputs}
    for request_id in ("a", "a", "unknown"):
        engine.abort(request_id)
    outputs |= drain(engine)
    assert outputs.keys() == {"a", "b"}
    tokens = outputs["a"].outputs[0].token_ids
    assert tokens == TOKENS[: len(tokens)] and len(tokens) <= after
    assert outputs["a"].outputs[0].finish_reason == ("length" if len(tokens) == 4 else "abort")
    assert outputs["b"].outputs[0].token_ids == TOKENS[:4]
    assert engine.scheduler.pool.num_used == 0


# Many requests.


def many(engine, num=30):
    for idx in range(num):
        params = SamplingParams(max_tokens=1 + idx % 9, stop_token_ids=[7, 70 + idx % 9])
        engine.add_request(str(idx), [idx] * (1 + idx % 20), params)


@pytest.mark.parametrize("mode", MODES)
def test_accounts_of_every_mode(mode):
    """Totals equal the tokens returned; the modes and overlap differ in steps, never in tokens."""
    results = {}
    for overlap in (True, False):
        engine = make_engine(mode, overlap=overlap)
        many(engine)
        outputs = drain(engine)
        results[overlap] = {idx: output.outputs[0].token_ids for idx, output in outputs.items()}
        summary = engine.summary
        assert summary.output_tokens == sum(map(len, results[overlap].values()))
        useful = summary.useful_prefill_tokens + summary.useful_slot_steps
        computed = summary.prefill_tokens + summary.slot_steps
        assert useful + summary.padded + summary.wasted + summary.recomputed == computed
        prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs.values())
        assert useful == prompt_tokens + summary.output_tokens - len(outputs)  # the last is never cached
    assert results[True] == results[False]
    for idx in range(30):
        expected = continuation([idx] * (1 + idx % 20), 1 + idx % 9, VOCAB_SIZE, (7, 70 + idx % 9))
        assert results[True][str(idx)] == expected


def test_steps_of_the_modes_are_in_the_expected_order():
    summaries = {}
    for mode in MODES:
        engine = make_engine(mode)
        for idx in range(64):
            engine.add_request(str(idx), [1, 2, 3], SamplingParams(max_tokens=1 + 7 * idx % 60))
        drain(engine)
        summaries[mode] = engine.summary
    decode = {mode: summary.decode_steps for mode, summary in summaries.items()}
    slots = {mode: summary.slot_steps for mode, summary in summaries.items()}
    assert decode["unbatched"] > decode["static"] == decode["static-padded"] > decode["continuous"]
    assert slots["static-padded"] > slots["static"] >= slots["continuous"] >= slots["unbatched"]


def waiting_engine(clock, naps):
    """static-full, four at once, on a clock that stands still but for naps."""

    def sleep(seconds):
        naps.append(seconds)
        clock[0] += seconds

    engine = make_engine("static-full")
    scheduler = Scheduler(engine.scheduler.config._replace(batch_wait_timeout_s=0.1))
    return tiny_engine.make_engine(
        scheduler, engine.runner, clock=lambda: clock[0], sleep=sleep, vocab_size=VOCAB_SIZE
    )


def test_a_batch_that_waits_to_be_full_naps_and_goes_on_at_its_time():
    """Neither a full processor nor a deadlock, with nothing to come; and no nap once it runs."""
    clock, naps = [50.0], []
    engine = waiting_engine(clock, naps)
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=3))
    step = engine.step()
    assert step == (None, None, [], []) and naps == [0.001]
    assert drain(engine)["r"].outputs[0].token_ids == TOKENS[:3]
    assert 99 <= len(naps) <= 101, "a tenth of a second of them"
    assert not engine.has_unfinished and engine.step().plan is None and len(naps) <= 101, "idle, it returns"


def test_a_batch_that_fills_up_while_it_waits_starts_at_once():
    clock, naps = [50.0], []
    engine = waiting_engine(clock, naps)
    for number in range(4):
        assert engine.step().plan is None
        engine.add_request(str(number), PROMPT, SamplingParams(max_tokens=3))
    assert len(engine.step().plan.chunks) == 4 and len(naps) == 3
    drain(engine)
    assert len(naps) == 3


def test_a_request_can_be_aborted_while_it_waits_for_company():
    naps = []
    engine = waiting_engine([50.0], naps)
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=3))
    engine.step()
    engine.abort("r")
    (output,) = engine.step().outputs
    assert output.outputs[0].finish_reason == "abort" and len(naps) == 1 and not engine.has_unfinished


def test_progress_adds_up_to_the_outputs():
    engine = make_engine()
    many(engine)
    progress, outputs = {}, {}
    while engine.has_unfinished:
        step = engine.step()
        for new in step.progress:
            progress.setdefault(new.request_id, []).extend(new.token_ids)
        outputs |= {output.request_id: output.outputs[0].token_ids for output in step.outputs}
    assert progress == outputs


def test_overlap_is_one_step_ahead():
    ahead, behind = make_engine(), make_engine(overlap=False)
    for engine in (ahead, behind):
        engine.add_request("r", PROMPT, SamplingParams(max_tokens=3))
    steps = [(ahead.step(), behind.step()) for _ in range(3)]
    assert [a.record is None for a, _ in steps] == [True, False, False]
    assert [b.record.step_idx for _, b in steps] == [0, 1, 2]
    assert [a.plan for a, _ in steps] == [b.plan for _, b in steps]
    drain(ahead)


@pytest.mark.parametrize(
    "policy, order", [("fcfs", "abc"), ("priority", "cab"), ("sjf", "bca"), ("ljf", "acb")]
)
def test_policies_order_those_who_wait(policy, order):
    engine = make_engine(policy=policy, num_rows=1)
    for request_id, priority, predicted_len in (("a", 1, 9), ("b", 2, 1), ("c", 0, 5)):
        params = SamplingParams(max_tokens=9)
        engine.add_request(request_id, PROMPT, params, priority=priority, predicted_len=predicted_len)
    assert "".join(drain(engine)) == order


def test_metrics_follow_the_clock():
    ticks = itertools.count()
    engine = make_engine(num_rows=1, clock=lambda: float(next(ticks)))
    for request_id in "ab":
        engine.add_request(request_id, PROMPT, SamplingParams(max_tokens=3))
    for output in drain(engine).values():
        metrics = output.metrics
        times = (
            metrics.arrival_time,
            metrics.scheduled_ts,
            metrics.first_token_ts,
            metrics.last_token_ts,
            metrics.finished_ts,
        )
        assert list(times) == sorted(times) and len(set(times)) == 5
        assert metrics.first_token_latency == metrics.first_token_ts - metrics.arrival_time > 0
        assert (metrics.num_generation_tokens, metrics.num_preemptions) == (3, 0)
    assert engine.summary.host_s > 0


def test_an_idle_engine_does_nothing():
    engine = make_engine()
    step = engine.step()
    assert (step.plan, step.record, step.progress, step.outputs) == (None, None, [], [])
    assert not engine.has_unfinished and engine.runner.num_steps == 0


def test_a_request_that_was_aborted_has_the_text_so_far():
    engine = make_engine(overlap=False)
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=9))
    for _ in range(2):
        engine.step()
    engine.abort("r")
    output = drain(engine)["r"].outputs[0]
    assert (output.text, output.finish_reason) == ("05.11.", FinishReason.ABORT)


def test_limits_that_fail_end_nothing():
    """The step is refused by name, and the next one goes on."""
    engine, calls = make_engine(), []

    def limits(view):
        calls.append(view)
        if len(calls) in (2, 4):
            raise ValueError("a limit")
        return StepLimits(64, 4)

    engine.scheduler.limits = limits
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=6))
    refused, ended = 0, {}
    while engine.has_unfinished:
        try:
            ended |= {output.request_id: output for output in engine.step().outputs}
        except UserFunctionError as error:
            assert str(error) == "limits='limits': it fails: ValueError: a limit"
            refused += 1
    assert refused == 2 and ended["r"].outputs[0].token_ids == TOKENS[:6]


def test_limits_that_fail_to_learn_from_a_step_are_named():
    engine = make_engine()
    engine.pipeline.on_record = lambda record: 1 / 0
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=6))
    with pytest.raises(UserFunctionError, match="limits='<lambda>': it fails for a step: ZeroDivisionError"):
        drain(engine)


def test_a_field_that_no_schedule_has_is_named():
    with pytest.raises(TypeError, match="add_request has no option 'prioritty'; did you mean 'priority'"):
        make_engine().add_request("r", PROMPT, prioritty=1)
    with pytest.raises(TypeError, match=r"it belongs in SamplingParams\(max_tokens=...\)"):
        make_engine().add_request("r", PROMPT, max_tokens=1)


def test_the_engine_notes_what_ends():
    engine = make_engine()
    engine.add_request("a", [1, 2], SamplingParams(max_tokens=4))
    engine.add_request("b", [1, 2, 3], SamplingParams(max_tokens=4))
    engine.abort("b")
    drain(engine)
    assert len(engine.intake.history) == 1 and engine.intake.history.mean == 4
