"""Several engines as one, on fake devices: each request is answered once, whichever replica has it."""

import contextlib
import threading

import pytest

from jbatch.engine.batch import complete
from jbatch.engine.prompts import list_requests
from jbatch.engine.stream import stream
from jbatch.errors import JBatchError, RequestError
from jbatch.outputs import FinishReason
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import continuation
from tests.helpers.interrupts import Interrupts
from tests.helpers.invariants import check_invariants
from tests.helpers.replicas import Device, make_replicas
from tests.helpers.schedules import VOCAB_SIZE
from tests.helpers.sizes import sized


def expected(idx, max_tokens, sample_idx=0):
    return continuation([1, idx], max_tokens, VOCAB_SIZE, sample_idx=sample_idx)


def add_many(replicas, num=20, **params):
    for idx in range(num):
        replicas.add_request(str(idx), [1, idx], SamplingParams(max_tokens=3 + idx % 5, **params))


def run(replicas):
    """Step until idle: all outputs, in the order in which they came, and the tokens that were handed out."""
    outputs, tokens = [], {}
    while replicas.has_unfinished:
        step = replicas.step()
        outputs += step.outputs
        for new in step.progress:
            tokens.setdefault((new.request_id, new.sample_idx), []).extend(new.token_ids)
    return outputs, tokens


def check_answers(outputs, num=20, n=1):
    assert sorted(output.request_id for output in outputs) == sorted(map(str, range(num)))
    for output in outputs:
        idx = int(output.request_id)
        assert output.error is None
        answers = [sample.token_ids for sample in output.outputs]
        assert answers == [expected(idx, 3 + idx % 5, sample_idx) for sample_idx in range(n)]


def check_clean(replicas):
    for engine in replicas.engines:
        check_invariants(engine.scheduler)
        assert engine.scheduler.pool.num_used == 0 and not engine.has_unfinished
    assert not replicas.has_unfinished and not replicas.num_unfinished


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_answers_do_not_depend_on_the_number_of_replicas(num_replicas, n):
    replicas = make_replicas(num_replicas)
    add_many(replicas, n=n)
    assert replicas.num_unfinished == 20
    outputs, tokens = run(replicas)
    check_answers(outputs, n=n)
    for output in outputs:
        for sample in output.outputs:
            assert tokens[output.request_id, sample.index] == sample.token_ids
    assert all(engine.runner.num_steps for engine in replicas.engines), "each had something to do"
    assert replicas.summary.num_steps == sum(engine.summary.num_steps for engine in replicas.engines)
    check_clean(replicas)


def test_seeds_are_those_of_the_input_wherever_a_request_goes():
    seeds = {}
    for num_replicas in (1, 3):
        replicas, seen = make_replicas(num_replicas, seed=7), {}
        for engine in replicas.engines:
            queue = engine.queue
            engine.queue = lambda request, key, queue=queue, seen=seen: (
                seen.update({request.request_id: request.seed}),
                queue(request, key),
            )
        add_many(replicas)
        run(replicas)
        seeds[num_replicas] = seen
    assert seeds[1] == seeds[3] and len(set(seeds[1].values())) == 20


def test_a_step_is_launched_on_every_device_before_a_result_is_waited_for():
    replicas = make_replicas(3, device=lambda shape, idx: Device(shape, takes=5))
    add_many(replicas)
    plans = [replicas.step().plan for _ in range(3)]
    assert None not in plans and [engine.runner.num_steps for engine in replicas.engines] == [1, 1, 1]
    check_answers(run(replicas)[0])


def test_a_slow_device_holds_nobody_up():
    """It is given less: what waits goes to who has room."""
    replicas = make_replicas(2, device=lambda shape, idx: Device(shape, takes=30 * idx))
    add_many(replicas, 40)
    check_answers(run(replicas)[0], 40)
    fast, slow = (engine.summary.output_tokens for engine in replicas.engines)
    assert slow > 0 and fast > 3 * slow


def test_who_waits_is_in_the_order_of_the_policy():
    replicas = make_replicas(2, policy="priority", num_rows=1)
    for idx in range(20):
        replicas.add_request(str(idx), [1, idx], SamplingParams(max_tokens=3), priority=20 - idx)
    order = [int(output.request_id) for output in run(replicas)[0]]
    assert set(order[:4]) == {19, 18, 17, 16} and set(order[-4:]) == {0, 1, 2, 3}


# A replica that fails.


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_what_a_failed_replica_had_is_answered_by_the_others_once(fails_at, n):
    """Also in what is shown on the way: no token comes twice."""
    replicas = make_replicas(
        3, device=lambda shape, idx: Device(shape, fails_at=fails_at if idx == 1 else None)
    )
    add_many(replicas, n=n)
    outputs, tokens = run(replicas)
    check_answers(outputs, n=n)
    for output in outputs:
        for sample in output.outputs:
            assert tokens[output.request_id, sample.index] == sample.token_ids
    assert replicas.engines[1].runner.num_steps == fails_at
    check_clean(replicas)


def test_a_failed_replica_is_tried_again_once_all_have_ended():
    replicas = make_replicas(2, device=lambda shape, idx: Device(shape, fails_at=2 if idx else None))
    add_many(replicas)
    check_answers(run(replicas)[0])
    replicas.engines[1].runner.fails_at = None
    add_many(replicas)
    check_answers(run(replicas)[0])
    assert replicas.engines[1].runner.num_steps > 2


def test_where_all_fail_the_error_is_raised_and_each_request_ends_once():
    replicas = make_replicas(3, device=lambda shape, idx: Device(shape, fails_at=3 * idx + 1))
    add_many(replicas)
    outputs = []
    with pytest.raises(RuntimeError, match="a device is lost"):
        while True:
            outputs += replicas.step().outputs
    outputs += run(replicas)[0]
    assert sorted(output.request_id for output in outputs) == sorted(map(str, range(20)))
    failed = [output for output in outputs if output.error]
    assert failed and all("a step failed: RuntimeError: a device is lost" in each.error for each in failed)
    check_clean(replicas)
    for engine in replicas.engines:
        engine.runner.fails_at = None
    add_many(replicas)
    check_answers(run(replicas)[0])


def test_an_abort_reaches_a_request_that_moves():
    replicas = make_replicas(2, device=lambda shape, idx: Device(shape, fails_at=1 if idx else None))
    add_many(replicas, 8)
    replicas.step()
    moving = [placed.request.request_id for placed in replicas._rounds.placed.at(1)]
    assert moving
    outputs = []
    while not replicas._rounds.failed:
        outputs += replicas.step().outputs
    replicas.abort(moving[0])
    outputs += run(replicas)[0]
    assert sorted(output.request_id for output in outputs) == sorted(map(str, range(8)))
    (aborted,) = [output for output in outputs if output.request_id == moving[0]]
    assert aborted.outputs[0].finish_reason == FinishReason.ABORT
    check_clean(replicas)


# As an Engine.


@pytest.mark.parametrize("after", range(0, 8, 2))
def test_abort_in_every_state(after):
    replicas, outputs = make_replicas(2, num_rows=1), []
    add_many(replicas, 10)
    for _ in range(after):
        outputs += replicas.step().outputs
    for request_id in ("0", "9", "9", "unknown"):
        replicas.abort(request_id)
    outputs += run(replicas)[0]
    assert sorted(output.request_id for output in outputs) == sorted(map(str, range(10)))
    by_id = {output.request_id: output.outputs[0] for output in outputs}
    assert by_id["9"].finish_reason == FinishReason.ABORT and by_id["9"].token_ids == []
    check_clean(replicas)


def test_refusals():
    replicas = make_replicas(2)
    replicas.add_request("r", [1, 2], SamplingParams(max_tokens=2))
    with pytest.raises(RequestError, match="id has not ended"):
        replicas.add_request("r", [1, 2])
    with pytest.raises(RequestError, match="prompt_token_ids"):
        replicas.add_request("other", [97])
    assert [output.request_id for output in run(replicas)[0]] == ["r"]
    check_clean(replicas)


def test_calls_drive_it_and_leave_it_clean():
    replicas, ids = make_replicas(2, tokenizer=True), iter(range(10**6))
    params = SamplingParams(max_tokens=4)
    prompts = [[1, idx] for idx in range(12)]
    outputs = complete(replicas, list_requests(prompts, params, {}, ids))
    assert [output.outputs[0].token_ids for output in outputs] == [expected(idx, 4) for idx in range(12)]
    deltas = stream(replicas, list_requests(prompts, params, {}, ids))
    next(deltas)
    with pytest.raises(JBatchError, match="stream has the engine"):
        replicas.add_request("r", [1])
    deltas.close()
    check_clean(replicas)
    texts = {}
    for delta in stream(replicas, list_requests(prompts, params, {}, ids)):
        texts[delta.prompt_idx] = texts.get(delta.prompt_idx, "") + delta.text
    assert [texts[idx] for idx in range(12)] == [output.outputs[0].text for output in outputs]


def test_another_thread_may_add_and_abort():
    replicas, outputs, stop = make_replicas(2), [], threading.Event()

    def step():
        while not stop.is_set() or replicas.has_unfinished:  # in this order: all may come between
            outputs.extend(replicas.step().outputs)

    thread = threading.Thread(target=step)
    thread.start()
    for idx in range(60):
        replicas.add_request(str(idx), [1, idx], SamplingParams(max_tokens=3 + idx % 5))
        if idx % 7 == 0:
            replicas.abort(str(idx // 2))
    stop.set()
    thread.join(60)
    assert sorted(int(output.request_id) for output in outputs) == list(range(60))
    check_clean(replicas)


def on_the_host(file, function):
    return any(f"/jbatch/engine/{name}.py" in file for name in ("replicas", "rounds", "placed"))


def adding_and_aborting(file, function):
    return on_the_host(file, function) and function in ("add", "abort", "_end", "drop")


def interrupted_run(number, wanted=on_the_host):
    """An interrupt at the number-th line of what joins replicas, while one of them fails; whether there were
    so many. Every request ends once."""
    replicas = make_replicas(2, device=lambda shape, idx: Device(shape, fails_at=2 if idx else None))
    added, ended = [], []

    def go_on():
        while replicas.has_unfinished:
            ended.extend(replicas.step().outputs)

    with contextlib.suppress(KeyboardInterrupt), Interrupts(number, wanted) as interrupts:
        for idx in range(10):
            replicas.add_request(str(idx), [1, idx], SamplingParams(max_tokens=3 + idx % 5))
            added.append(str(idx))
        ended.extend(replicas.step().outputs)
        replicas.abort("9")
        go_on()
    go_on()
    ids = [output.request_id for output in ended]
    assert len(set(ids)) == len(ids), "an output came twice"
    for output in ended:
        if output.outputs[0].finish_reason == FinishReason.LENGTH:
            idx = int(output.request_id)
            assert output.outputs[0].token_ids == expected(idx, 3 + idx % 5)
    assert len(set(added) - set(ids)) <= 2, "but those of one step that was on its way out"
    check_clean(replicas)
    replicas.add_request("last", [1, 50], SamplingParams(max_tokens=3))
    (output,) = run(replicas)[0]
    assert output.outputs[0].token_ids == expected(50, 3)
    return interrupts.raised


def test_an_interrupt_at_any_line_leaves_working_replicas():
    number = 0
    while interrupted_run(number):
        number += sized(29, 1)
    assert number > 500


def test_an_interrupt_while_a_request_is_added_or_aborted_leaves_none_that_nobody_has():
    number = 0
    while interrupted_run(number, adding_and_aborting):
        number += 1
    assert number > 50
