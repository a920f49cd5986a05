"""The engine on a fake device, whose tokens can be worked out by hand."""

import contextlib
import itertools
import random

import numpy as np
import pytest

from jbatch.engine.intake import derive_seed
from jbatch.errors import RequestError, UserFunctionError
from jbatch.host.limits import StepLimits
from jbatch.host.policy import MODES, Policy
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers import tiny_engine
from tests.helpers.interrupts import Interrupts
from tests.helpers.invariants import check_invariants
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.sizes import sized
from tests.helpers.tiny_engine import drain
from tests.helpers.tokenizers import numbered, wrapped

PROMPT = [1, 2]
TOKENS = [5, 11, 23, 47, 95, 94, 92, 88, 80, 64]  # what follows: sum plus length, modulo 97


def make_engine(mode="continuous", policy="fcfs", tokenizer=True, **options):
    config = scheduler_config(mode, policy, num_rows=options.pop("num_rows", 4))._replace(
        batch_wait_timeout_s=0.02
    )
    runner = FakeRunner(config.shape, VOCAB_SIZE)
    if tokenizer is True:
        tokenizer = wrapped(numbered())
    options = {"vocab_size": VOCAB_SIZE, "tokenizer": tokenizer or None, **options}
    return tiny_engine.make_engine(Scheduler(config), runner, **options)


def generate(params, prompt=PROMPT, **options):
    engine = make_engine(**options)
    engine.add_request("r", prompt, SamplingParams(**params))
    return drain(engine)["r"]


def test_the_tokens_above_are_right():
    assert continuation(PROMPT, 10, VOCAB_SIZE) == TOKENS


# Ends.

LONG = 40 * "4"  # a stop string whose length must not bring another one back
INCLUDE = {"include_stop_str_in_output": True}


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    "params, eos, num_tokens, reason, stop_reason, text",
    [
        ({"max_tokens": 3}, (), 3, "length", None, "05.11.23."),
        ({"max_tokens": 1}, (), 1, "length", None, "05."),
        ({"max_tokens": 0}, (), 0, "length", None, ""),
        ({"max_tokens": 9}, (23,), 3, "stop", None, "05.11."),
        ({"max_tokens": 3}, (23,), 3, "stop", None, "05.11."),  # a stop at the very last token
        ({"max_tokens": 5, "ignore_eos": True}, (23,), 5, "length", None, "05.11.23.47.95."),
        ({"max_tokens": 9, "stop_token_ids": [47]}, (), 4, "stop", 47, "05.11.23."),
        ({"max_tokens": 9, "stop_token_ids": [47]}, (23,), 3, "stop", None, "05.11."),
        ({"max_tokens": 9, "stop_token_ids": [23], "ignore_eos": True}, (23,), 3, "stop", 23, "05.11."),
        ({"max_tokens": 9, "stop": "23"}, (), 3, "stop", "23", "05.11."),
        ({"max_tokens": 9, "stop": "1.2"}, (), 3, "stop", "1.2", "05.1"),  # across two tokens
        ({"max_tokens": 3, "stop": ["23."]}, (), 3, "stop", "23.", "05.11."),  # and its length ends too
        ({"max_tokens": 9, "stop": ["47", "1."]}, (), 2, "stop", "1.", "05.1"),
        ({"max_tokens": 9, "stop": "1.2", **INCLUDE}, (), 3, "stop", "1.2", "05.11.2"),
        ({"max_tokens": 9, **INCLUDE}, (23,), 3, "stop", None, "05.11.23."),
        ({"max_tokens": 9, "stop": "23", "min_tokens": 2}, (), 3, "stop", "23", "05.11."),
        ({"max_tokens": 9, "stop": "1.2", "min_tokens": 2}, (), 3, "stop", "1.2", "05.1"),
        ({"max_tokens": 5, "stop": "1.2", "min_tokens": 3}, (), 5, "length", None, "05.11.23.47.95."),
        ({"max_tokens": 9, "stop": ["1.", "95", LONG], "min_tokens": 2}, (), 5, "stop", "95", "05.11.23.47."),
        ({"max_tokens": 3, "stop": "xyz"}, (), 3, "length", None, "05.11.23."),
        ({"max_tokens": 3, "detokenize": False}, (), 3, "length", None, ""),
    ],
)  # fmt: skip
def test_ends(params, eos, num_tokens, reason, stop_reason, text, overlap):
    output = generate(params, eos_token_ids=eos, overlap=overlap).outputs[0]
    assert output.token_ids == TOKENS[:num_tokens]
    assert (output.finish_reason, output.stop_reason, output.text) == (reason, stop_reason, text)


def test_min_tokens_holds_stops_back():
    tokens = generate({"max_tokens": 9, "min_tokens": 3}, eos_token_ids=(11, 23)).outputs[0].token_ids
    assert tokens == continuation(PROMPT, 9, VOCAB_SIZE, (11, 23), 3)
    assert len(tokens) >= 3 and not {11, 23} & set(tokens[:3])


def test_without_max_tokens_the_context_is_the_end():
    output = generate({})
    assert len(output.outputs[0].token_ids) == 128 - len(PROMPT)
    assert output.outputs[0].finish_reason == "length" and output.finished


def test_a_text_prompt_and_its_output():
    engine = make_engine()
    engine.add_request("r", "01.02.", SamplingParams(max_tokens=2))
    output = drain(engine)["r"]
    assert (output.prompt, output.prompt_token_ids, output.request_id) == ("01.02.", PROMPT, "r")
    assert output.outputs[0].text == "05.11." and output.error is None


@pytest.mark.parametrize("prompt", [(1, 2), np.asarray([1, 2]), [np.int64(1), np.int32(2)]])
def test_token_ids_of_any_integer_kind(prompt):
    output = generate({"max_tokens": 2}, prompt)
    assert output.outputs[0].token_ids == TOKENS[:2] and output.prompt is None
    assert [type(token_id) for token_id in output.prompt_token_ids] == [int, int]


# Refusals.


@pytest.mark.parametrize(
    "prompt, params, field",
    [
        ("", {}, "prompt"),
        ([], {}, "prompt_token_ids"),
        ([97], {}, "prompt_token_ids"),
        ([-1], {}, "prompt_token_ids"),
        ([1.0], {}, "prompt_token_ids"),
        ([True], {}, "prompt_token_ids"),
        (["a"], {}, "prompt_token_ids"),
        ([None], {}, "prompt_token_ids"),
        ([2**70], {}, "prompt_token_ids"),
        (None, {}, "prompt"),
        (7, {}, "prompt"),
        (b"bytes", {}, "prompt"),
        ([1] * 128, {}, "prompt_token_ids + max_tokens"),
        ([1] * 1000, {"max_tokens": 1}, "prompt_token_ids + max_tokens"),
        ([1], {"max_tokens": 128}, "prompt_token_ids + max_tokens"),
        ([1], {"stop_token_ids": [97]}, "stop_token_ids"),
        ([1], {"stop_token_ids": list(range(16))}, "stop_token_ids"),  # and one end-of-sequence id
    ],
)
def test_refusals_name_the_field_and_leave_no_trace(prompt, params, field):
    engine = make_engine(eos_token_ids=(50,))
    with pytest.raises(RequestError) as error:
        engine.add_request("r", prompt, SamplingParams(**params))
    assert error.value.field == field and str(error.value).startswith(f"{field}=")
    assert not engine.has_unfinished and engine.num_unfinished == 0
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=1))  # the id is free
    assert drain(engine)["r"].outputs[0].token_ids == TOKENS[:1]


@pytest.mark.parametrize("prompt, params", [("text", {}), (PROMPT, {"stop": "a"})])
def test_without_a_tokenizer_text_is_refused(prompt, params):
    engine = make_engine(tokenizer=False)
    with pytest.raises(RequestError, match="no tokenizer"):
        engine.add_request("r", prompt, SamplingParams(**params))


def test_without_a_tokenizer_ids_work_and_text_is_empty():
    output = generate({"max_tokens": 3}, tokenizer=False).outputs[0]
    assert (output.token_ids, output.text) == (TOKENS[:3], "")


def test_a_request_id_is_unique_while_it_lives():
    engine = make_engine()
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=2))
    with pytest.raises(RequestError, match="request_id"):
        engine.add_request("r", PROMPT)
    drain(engine)
    engine.add_request("r", PROMPT, SamplingParams(max_tokens=1))
    assert drain(engine).keys() == {"r"}


def test_output_that_cannot_be_decoded_ends_its_request_alone(monkeypatch):
    engine = make_engine()
    engine.add_request("bad", PROMPT, SamplingParams(max_tokens=9, stop="x"))
    engine.add_request("good", PROMPT, SamplingParams(max_tokens=9))

    def fail(self, token_id, search):
        raise RequestError("stop", ["x"], "the output cannot be decoded: boom")

    monkeypatch.setattr("jbatch.text.tokenizer.Detokenizer.push", fail)
    outputs = drain(engine)
    assert outputs["bad"].outputs[0].finish_reason == "error" and "boom" in outputs["bad"].error
    assert outputs["good"].outputs[0].token_ids == TOKENS[:9]


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


# Seeds, times.


def test_seeds_derive_from_the_index_in_the_input():
    engine = make_engine(seed=3)
    engine.add_request("a", PROMPT)
    engine.add_request("b", PROMPT, index=7)
    engine.add_request("c", PROMPT, SamplingParams(seed=11))
    engine.add_request("d", PROMPT, index=0)
    seeds = [sequence.request.seed for sequence in engine.scheduler.lifecycle.sequences.values()]
    assert seeds == [derive_seed(3, 0), derive_seed(3, 7), 11, derive_seed(3, 0)]
    assert len({derive_seed(seed, index) for seed in range(30) for index in range(30)}) == 900


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


# An interrupt at any place.


def on_the_host(file, function):
    return "/jbatch/engine/" in file or "/jbatch/host/" in file


def interrupted_run(number, second=None):
    """An interrupt at the number-th line of the host, and another so many lines later; whether there were so
    many. Ends with an engine that works."""
    engine = make_engine(num_rows=2)
    texts = {str(idx): continuation([1, idx], 3 + idx, VOCAB_SIZE) for idx in range(4)}
    ended = []

    def go_on():
        while engine.has_unfinished:
            ended.extend(engine.step().outputs)

    with contextlib.suppress(KeyboardInterrupt), Interrupts(number, on_the_host) as first:
        for idx in range(4):
            params = SamplingParams(max_tokens=3 + idx, n=2, stop=["xyz"])
            engine.add_request(str(idx), [1, idx], params)
        ended.extend(engine.step().outputs)
        engine.abort("1")
        go_on()
    if second is not None:
        with contextlib.suppress(KeyboardInterrupt), Interrupts(second, on_the_host):
            engine.add_request("after", PROMPT, SamplingParams(max_tokens=3))
            engine.abort("2")
            go_on()
    go_on()
    request_ids = [output.request_id for output in ended if output.request_id != "after"]
    assert len(set(request_ids)) == len(request_ids), "an output came twice"
    for output in ended:
        if output.request_id != "after" and not output.error and output.request_id not in "12":
            assert output.outputs[0].token_ids == texts[output.request_id]
    check_invariants(engine.scheduler)
    assert (
        engine.scheduler.pool.num_used == 0 and not engine.requests.samples and not engine.requests.unfinished
    )
    engine.add_request("last", PROMPT, SamplingParams(max_tokens=3))
    assert drain(engine)["last"].outputs[0].token_ids == TOKENS[:3]
    return first.raised


def test_an_interrupt_at_any_line_leaves_a_working_engine():
    """Also a second one, while the engine is mended. No output that was there is lost or comes twice."""
    number = 0
    while interrupted_run(number):
        number += sized(41, 1)
    assert number > 1500


@pytest.mark.parametrize("seed", range(sized(60, 3000)))
def test_two_interrupts_leave_a_working_engine(seed):
    rng = random.Random(seed)
    interrupted_run(rng.randrange(1500), rng.choice((rng.randrange(60), rng.randrange(600))))


# A step that fails, and fields that a policy sorts by.


class Failing:
    """A runner whose call number `at` of `method` raises."""

    samplers, counts_all = FakeRunner.samplers, False

    def __init__(self, runner, method, at):
        self._runner, self._method, self._left = runner, method, at
        self.tenancy = runner.tenancy

    def submit(self, step):
        return self._call("submit", step)

    def collect(self, handle):
        return self._call("collect", handle)

    def _call(self, method, argument):
        if method == self._method:
            self._left -= 1
            if self._left < 0:
                self._left = 10**9
                raise KeyboardInterrupt
        return getattr(self._runner, method)(argument)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["submit", "collect"])
@pytest.mark.parametrize("at", range(6))
def test_where_a_step_fails_every_request_ends_once_and_nothing_is_left(mode, method, at):
    engine = make_engine(mode)
    engine.pipeline.runner = Failing(engine.runner, method, at)
    for idx in range(6):
        engine.add_request(str(idx), [1, idx], SamplingParams(max_tokens=1 + idx))
    ended = []
    with pytest.raises(KeyboardInterrupt):
        while True:
            ended += engine.step().outputs
    while engine.has_unfinished:
        ended += engine.step().outputs
    assert sorted(output.request_id for output in ended) == [str(idx) for idx in range(6)]
    for output in ended:
        completion = output.outputs[0]
        if output.error is None:
            assert completion.token_ids == continuation(
                [1, int(output.request_id)], 1 + int(output.request_id), VOCAB_SIZE
            )
        else:
            assert completion.finish_reason == "error" and "a step failed" in output.error
    assert engine.scheduler.pool.num_used == 0
    engine.add_request("after", PROMPT, SamplingParams(max_tokens=3))
    assert drain(engine)["after"].outputs[0].token_ids == TOKENS[:3]


@pytest.mark.parametrize(
    "field, value",
    [
        ("priority", None), ("priority", "high"), ("priority", 0.5), ("arrival", float("nan")),
        ("arrival", "now"), ("deadline", float("inf")), ("predicted_len", -1), ("predicted_len", 2.5),
    ],
)  # fmt: skip
def test_what_a_policy_cannot_sort_by_is_refused(field, value):
    engine = make_engine(policy="priority")
    if value is None:
        value = [None]
    with pytest.raises(RequestError, match=field):
        engine.add_request("bad", PROMPT, **{field: value})
    engine.add_request("good", PROMPT, SamplingParams(max_tokens=2))
    assert drain(engine)["good"].outputs[0].token_ids == TOKENS[:2]


BAD_KEYS = {2: ("x",), 4: (float("nan"),), 6: 3, 8: None, 10: ZeroDivisionError()}


def test_a_policy_that_fails_once_refuses_that_request_and_no_other():
    """Also where it is incomparable with the keys of those that wait."""
    engine = make_engine(num_rows=1)

    def policy(request, now, view):
        key = BAD_KEYS.get(request.prompt_token_ids[1], (0.0,))
        if isinstance(key, Exception):
            raise key
        return key

    engine.scheduler.config = engine.scheduler.config._replace(policy=Policy(policy))
    for idx in range(12):
        with (
            contextlib.nullcontext()
            if idx not in BAD_KEYS
            else pytest.raises(RequestError, match=r"^policy=")
        ):
            engine.add_request(str(idx), [1, idx], SamplingParams(max_tokens=3, n=2))
    outputs = drain(engine)
    assert outputs.keys() == {str(idx) for idx in range(12) if idx not in BAD_KEYS}
    for idx, output in outputs.items():
        assert output.outputs[0].token_ids == continuation([1, int(idx)], 3, VOCAB_SIZE)
    assert engine.scheduler.pool.num_used == 0 and engine.scheduler.num_waiting == 0


def test_a_policy_whose_keys_stay_is_asked_once_however_often_a_request_waits():
    asked = []

    def policy(request, now, view):
        asked.append(request.request_id)
        return (0.0,)

    config = scheduler_config(num_rows=3, num_pages=5, page_size=4, max_model_len=16)
    config = config._replace(policy=Policy(policy, rerank_steps=0))
    engine = tiny_engine.make_engine(
        Scheduler(config), FakeRunner(config.shape, VOCAB_SIZE), vocab_size=VOCAB_SIZE
    )
    for idx in range(4):
        engine.add_request(str(idx), [1, idx], SamplingParams(max_tokens=10))
    drain(engine)
    assert engine.summary.num_preempted and asked == ["0", "1", "2", "3"]


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


def test_scalars_of_numpy_are_numbers():
    engine = make_engine(policy="priority")
    params = SamplingParams(max_tokens=np.int64(3), temperature=np.float32(0), ignore_eos=np.bool_(True))
    fields = {"arrival": np.float64(1), "priority": np.int32(2), "predicted_len": np.int64(4)}
    engine.add_request("r", PROMPT, params, index=np.int64(7), request_idx=np.int32(1), **fields)
    (sequence,) = engine.scheduler.unfinished
    request = sequence.request
    assert [type(value) for value in (request.arrival, request.priority, request.predicted_len)] == [
        float,
        int,
        int,
    ]
    assert request.seed == derive_seed(0, 7) and drain(engine)["r"].outputs[0].token_ids == TOKENS[:3]


def test_a_stop_finder_that_fails_is_that_requests_error_alone():
    engine = make_engine()
    real = engine.tokenizer.detokenizer

    def detokenizer(stop, *, after, **options):
        if after == (1, 13):
            raise ValueError("no such token")
        return real(stop, after=after, **options)

    engine.tokenizer.detokenizer = detokenizer
    params = SamplingParams(max_tokens=2, stop="x", n=2)
    for idx in (2, 13, 3):
        engine.add_request(str(idx), [1, idx], params)
    outputs = drain(engine)
    assert outputs["13"].error == "no such token" and outputs["13"].outputs[0].finish_reason == "error"
    assert outputs["2"].outputs[1].token_ids == continuation(PROMPT, 2, VOCAB_SIZE, sample_idx=1)
    assert outputs["3"].error is None and not engine.num_unfinished


def test_a_text_that_cannot_be_decoded_is_that_requests_error_alone():
    engine = make_engine()
    real = type(engine.tokenizer).decode

    def decode(token_ids, **options):
        if 23 in token_ids:
            raise RequestError("token_ids", token_ids, "cannot be decoded")
        return real(engine.tokenizer, token_ids, **options)

    engine.tokenizer.decode = decode
    engine.add_request("bad", PROMPT, SamplingParams(max_tokens=3))
    engine.add_request("good", PROMPT, SamplingParams(max_tokens=2))
    outputs = drain(engine)
    assert outputs["bad"].outputs[0].finish_reason == "error" and "cannot be decoded" in outputs["bad"].error
    assert outputs["good"].outputs[0].text == "05.11."


def test_the_engine_notes_what_ends():
    engine = make_engine()
    engine.add_request("a", [1, 2], SamplingParams(max_tokens=4))
    engine.add_request("b", [1, 2, 3], SamplingParams(max_tokens=4))
    engine.abort("b")
    drain(engine)
    assert len(engine.intake.history) == 1 and engine.intake.history.mean == 4
