"""Weights change under an engine: every token is a fresh engine's of the weights that its output names."""

import contextlib
import threading
import time

import jax
import pytest

import weights
from jbatch.device.compile_counter import compile_counter
from jbatch.device.model import abstract_params
from jbatch.device.runner import Runner
from jbatch.errors import JBatchError
from jbatch.host.limits import StepLimits
from jbatch.outputs import FinishReason
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from tests.helpers.interrupts import Interrupts
from tests.helpers.tiny_engine import MIXED, drain, make_engine, make_runner, make_scheduler, tiny_config

LIKE = abstract_params(tiny_config())
TREES = [weights.random(LIKE, seed=seed, scale=0.15) for seed in range(3)]
SOURCES = [weights.match(tree, LIKE) for tree in TREES]
PROMPTS = [[5, 6, 7], list(range(10, 50)), [3] * 17, [8, 9], [60, 61, 62, 63]]  # one more than rows


@pytest.fixture(scope="module")
def runner():
    """Of one program, so that bits are promised."""
    return make_runner(Sampler.LOGPROBS, buckets=(MIXED,))


@pytest.fixture(scope="module")
def fresh(runner):
    """For each tree the answers of a runner that never had another one."""
    runners = [
        Runner(
            runner.spec,
            jax.tree.map(lambda leaf: leaf.copy(), tree),
            (MIXED,),
            runner.samplers,
            runner._programs,
        )
        for tree in TREES
    ]
    for each in runners:
        each.prepare()

    def answer(which, prompt, params):
        engine = engine_of(runners[which])
        engine.add_request("alone", prompt, params)
        return drain(engine)["alone"].outputs[0]

    return answer


def engine_of(runner, **options):
    return make_engine(make_scheduler(buckets=(MIXED,), **options), runner)


def change(engine, which, mode="retract", label=None):
    """The weights become TREES[which], and are called so."""
    label = which if label is None else label
    engine.update(lambda: engine.runner.replace_params(SOURCES[which], label), mode)


def params_of(idx, max_tokens=20):
    return SamplingParams(temperature=idx % 2, seed=idx, max_tokens=max_tokens, logprobs=1)


def add_all(engine, max_tokens=20):
    for idx, prompt in enumerate(PROMPTS):
        engine.add_request(str(idx), prompt, params_of(idx, max_tokens))


def steps(engine, number):
    outputs = {}
    for _ in range(number):
        outputs |= {output.request_id: output for output in engine.step().outputs}
    return outputs


def drain_into(outputs, engine):
    while engine.has_unfinished:
        outputs |= steps(engine, 1)


def check(output, fresh, max_tokens=20):
    """Token by token, and bit by bit, it is what fresh engines give for what was there before."""
    idx, completion = int(output.request_id), output.outputs[0]
    assert bool(completion.token_ids) == bool(completion.weight_versions)
    token_ids, versions = completion.token_ids, completion.weight_versions
    ends = [*(first for first, _ in versions[1:]), len(token_ids)]
    for (first, label), end in zip(versions, ends, strict=False):
        prompt = PROMPTS[idx % len(PROMPTS)] + token_ids[:first]
        expected = fresh(label, prompt, params_of(idx, max_tokens - first))
        assert token_ids[first:end] == expected.token_ids[: end - first]
        assert completion.logprobs[first:end] == expected.logprobs[: end - first]


@pytest.mark.parametrize("num_steps", [0, 1, 2, 6])
def test_what_runs_is_prefilled_again_by_the_new_weights(runner, fresh, num_steps):
    engine = engine_of(runner)
    change(engine, 0)
    add_all(engine)
    steps(engine, num_steps)
    change(engine, 1)
    outputs = drain(engine)
    for output in outputs.values():
        check(output, fresh)
    spans = [output.outputs[0].weight_versions for output in outputs.values()]
    assert len(outputs) == 5 and spans[4] == ((0, 1),)  # it had to wait for a row
    assert [label for _, label in spans[0]] == ([0, 1] if num_steps else [1])
    assert engine.scheduler.pool.num_used == 0


def test_waiting_lets_all_requests_end_by_the_old_weights(runner, fresh):
    engine = engine_of(runner)
    change(engine, 0)
    add_all(engine)
    early = steps(engine, 6)
    change(engine, 1, "wait")
    assert engine.num_unfinished == 0 and engine.has_unfinished  # their outputs are to be handed out
    engine.add_request("5", PROMPTS[0], params_of(5))
    outputs = early | drain(engine)
    for output in outputs.values():
        check(output, fresh)
    assert [output.outputs[0].weight_versions for output in outputs.values()] == [((0, 0),)] * 5 + [((0, 1),)]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6])
def test_samples_that_share_pages_are_prefilled_again(runner, fresh, num_steps):
    """Three of one prompt, and two that wait for a row; they draw alike, so what each has is known."""
    engine, prompt = engine_of(runner), list(range(10, 50))
    params = SamplingParams(temperature=0, n=5, max_tokens=20, logprobs=1)
    change(engine, 0)
    engine.add_request("0", PROMPTS[0], params_of(0))
    engine.add_request("1", prompt, params)
    outputs = steps(engine, num_steps)
    change(engine, 1)
    outputs |= drain(engine)
    for sample in outputs["1"].outputs:
        ends = [*(first for first, _ in sample.weight_versions[1:]), 20]
        for (first, label), end in zip(sample.weight_versions, ends, strict=True):
            rest = SamplingParams(temperature=0, max_tokens=20 - first, logprobs=1)
            expected = fresh(label, prompt + sample.token_ids[:first], rest)
            assert sample.token_ids[first:end] == expected.token_ids[: end - first]
            assert sample.logprobs[first:end] == expected.logprobs[: end - first]
    check(outputs["0"], fresh)
    assert engine.scheduler.pool.num_used == 0


@pytest.mark.parametrize("mode", ["retract", "wait", "abort"])
def test_no_page_of_older_weights_is_found_again(runner, fresh, mode):
    """Whatever label is repeated; of the same weights it is."""
    engine, prompt = engine_of(runner), list(range(70))
    params = SamplingParams(seed=1, max_tokens=4, logprobs=1)

    def ask():
        before = engine.summary.found
        engine.add_request("a", prompt, params)
        return drain(engine)["a"].outputs[0], engine.summary.found - before

    for which in (0, 1, 1, 0):
        change(engine, which, mode, label="the same")
        cold, found = ask()
        assert found == 0 and cold.weight_versions == ((0, "the same"),)
        warm, found = ask()
        assert found == 64
        for answer in (cold, warm):
            expected = fresh(which, prompt, params)
            assert (answer.token_ids, answer.logprobs) == (expected.token_ids, expected.logprobs)


def test_what_steps_gave_while_they_were_waited_for_is_handed_out_whole(runner):
    engine = engine_of(runner)
    add_all(engine)
    change(engine, 1, "wait")
    given, records, outputs = {str(idx): [] for idx in range(5)}, 0, {}
    while engine.has_unfinished:
        step = engine.step()
        records += step.record is not None
        outputs |= {output.request_id: output for output in step.outputs}
        for new in step.progress:
            given[new.request_id] += new.token_ids
    assert records == engine.summary.num_steps
    assert given == {key: output.outputs[0].token_ids for key, output in outputs.items()}


def test_a_request_that_only_scores_its_prompt_is_scored_by_one_of_them(runner):
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    prompt = list(range(90))  # two chunks
    engine, scores = engine_of(runner), []
    for which in (0, 1):
        change(engine, which)
        engine.add_request("alone", prompt, params)
        scores.append(drain(engine)["alone"].prompt_logprobs)
    change(engine, 0)
    engine.add_request("both", prompt, params)
    steps(engine, 1)
    change(engine, 1)
    output = drain(engine)["both"]
    assert output.prompt_logprobs == scores[1] != scores[0]
    assert output.outputs[0].weight_versions == ((0, 1),)


def test_aborting_ends_all_requests_with_what_they_have(runner, fresh):
    engine = engine_of(runner)
    change(engine, 0)
    add_all(engine)
    early = steps(engine, 6)
    change(engine, 1, "abort")
    engine.add_request("5", PROMPTS[0], params_of(5))
    outputs = early | drain(engine)
    assert outputs.pop("5").outputs[0].weight_versions == ((0, 1),)
    assert {output.outputs[0].finish_reason for output in outputs.values()} == {FinishReason.ABORT}
    assert len(outputs) == 5 and outputs["0"].outputs[0].token_ids
    assert outputs["4"].outputs[0].weight_versions == ()  # it had not begun
    for output in outputs.values():
        check(output, fresh)


def test_fifty_updates_in_a_row(runner, fresh):
    """With requests in flight all the time; no token is of weights that its output does not name."""
    engine = engine_of(runner)
    change(engine, 0)
    outputs, added, before = {}, 0, compile_counter().count
    for number in range(50):
        while engine.num_unfinished < 5:
            idx = added % len(PROMPTS)
            engine.add_request(str(added), PROMPTS[idx], params_of(added))
            added += 1
        outputs |= steps(engine, number % 4 + 1)
        change(engine, (number + 1) % 3)
    outputs |= drain(engine)
    assert len(outputs) == added > 15 and compile_counter().count == before
    for output in outputs.values():
        check(output, fresh)
    assert max(len(output.outputs[0].weight_versions) for output in outputs.values()) >= 3
    assert engine.scheduler.pool.num_used == 0


@pytest.mark.parametrize("mode", ["retract", "wait", "abort"])
def test_another_thread_may_update_while_one_steps(runner, fresh, mode):
    engine, outputs, errors = engine_of(runner), {}, []
    change(engine, 0)
    updated = threading.Event()

    def update():
        try:
            for number in range(5):
                time.sleep(0.01)
                change(engine, number % 2 + 1, mode)
        except BaseException as error:
            errors.append(error)
        finally:
            updated.set()

    thread = threading.Thread(target=update)
    thread.start()
    added = 0
    while not updated.is_set() or added < 8 or engine.has_unfinished:
        if engine.num_unfinished < 5 and not (updated.is_set() and added >= 8):
            engine.add_request(str(added), PROMPTS[added % 5], params_of(added))
            added += 1
        outputs |= steps(engine, 1)
    thread.join()
    assert not errors and len(outputs) == added >= 8
    for output in outputs.values():
        check(output, fresh)
        if mode != "retract":
            assert len(output.outputs[0].weight_versions) <= 1


def test_a_request_that_comes_while_others_are_waited_for_begins_with_the_new_weights(runner, fresh):
    """And may be aborted meanwhile, as may those that are waited for."""
    engine = engine_of(runner)
    change(engine, 0)
    add_all(engine)
    calls = []

    def limits(view):  # called by each step
        calls.append(view)
        if len(calls) == 4:
            assert engine.num_unfinished == 5  # of the six that were aborted or wait: it was told at once
        if len(calls) == 3:
            engine.add_request("5", PROMPTS[0], params_of(5))
            engine.add_request("6", PROMPTS[1], params_of(6))
            engine.abort("6")
            engine.abort("0")
        return StepLimits(64, 4)

    engine.scheduler.limits = limits
    change(engine, 1, "wait")
    assert engine.num_unfinished == 1
    outputs = drain(engine)
    versions = {key: output.outputs[0].weight_versions for key, output in outputs.items()}
    assert versions["5"] == ((0, 1),) and versions["6"] == () and versions["1"] == ((0, 0),)
    ends = {key: output.outputs[0].finish_reason for key, output in outputs.items()}
    assert {key for key, end in ends.items() if end == FinishReason.ABORT} == {"0", "6"}
    for output in outputs.values():
        check(output, fresh)


def test_weights_do_not_change_within_a_step(runner):
    engine, errors = engine_of(runner), []

    def limits(view):
        with pytest.raises(JBatchError, match="weights cannot change within a step") as error:
            change(engine, 1)
        errors.append(error)
        return StepLimits(64, 4)

    engine.scheduler.limits = limits
    version = runner.tenancy.weights.version
    add_all(engine, 2)
    drain(engine)
    assert errors and runner.tenancy.weights.version is version


def test_another_engine_of_the_runner_notices_too(runner, fresh):
    """Its requests run, and the update came by way of an engine without any."""
    engine, other = engine_of(runner), engine_of(runner)
    change(other, 0)
    add_all(engine)
    early = steps(engine, 3)
    change(other, 1)
    for output in (early | drain(engine)).values():
        check(output, fresh)


@pytest.mark.parametrize("mode", ["retract", "wait", "abort"])
def test_an_interrupt_anywhere_leaves_an_engine_that_works(runner, fresh, mode):
    """Whatever the weights are then: an update that went through, or that did not begin, or one to repeat."""

    def wanted(file, function):
        names = ("update", "_drain", "_launch", "replace_params", "tidy", "_catch_up", "count", "retract")
        return "/jbatch/" in file and function in names

    number, raised = 0, True
    while raised:
        engine = engine_of(runner)
        change(engine, 0)
        add_all(engine, 4)
        outputs = steps(engine, 2)
        with contextlib.suppress(KeyboardInterrupt), Interrupts(number, wanted) as interrupts:
            change(engine, 1, mode)
            drain_into(outputs, engine)
        try:
            drain_into(outputs, engine)
        except JBatchError as error:
            assert "half old and half new" in str(error)
            change(engine, 1)
            drain_into(outputs, engine)
        assert len(outputs) == 5 and engine.scheduler.pool.num_used == 0
        for output in outputs.values():
            if output.error is None:
                check(output, fresh, 4)
        raised = interrupts.raised
        number += 7 if number > 40 else 3
    assert number > 40
