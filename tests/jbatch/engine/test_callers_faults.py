"""What goes wrong with one asynchronous call, and what with all of them."""

import asyncio
import threading

import pytest

from jbatch.engine.callers import AsyncStream
from jbatch.engine.driver import Driver
from jbatch.engine.stream import stream
from jbatch.errors import JBatchError, RequestError
from jbatch.host.policy import Policy
from jbatch.sampling_params import SamplingParams
from tests.helpers import tiny_engine
from tests.helpers.shared_engine import LONG, Shared, expected, run, text_of, until

# What goes wrong.


def test_an_error_of_a_step_ends_all_calls_and_the_next_ones_work():
    shared = Shared()
    collect = shared.engine.runner.collect
    shared.engine.runner.collect = lambda handle: 1 / 0

    async def main():
        deltas = shared.stream([[1, 9]])
        calls = [shared.generate([[1, idx]]) for idx in range(3)]
        results = await asyncio.gather(*calls, text_of(deltas), return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 4
        with pytest.raises(StopAsyncIteration):
            await anext(deltas)
        shared.engine.runner.collect = collect
        (output,) = await shared.generate([[1, 2]], SamplingParams(max_tokens=2))
        return output.outputs[0].token_ids

    assert run(main()) == [5, 11] and shared.is_clean()


def test_an_error_of_one_call_is_its_own():
    """Of what it needs compiled, of a user's policy, of the texts that are made for it."""

    def bad_policy(request, now, view):
        if request.prompt_token_ids[0] == 13:
            raise ValueError("a policy")
        return (0.0,)

    def prepare(params):
        if any(one.max_tokens == 13 for one in params):
            raise MemoryError("a compiler")

    shared = Shared()
    shared.engine.scheduler.config = shared.engine.scheduler.config._replace(policy=Policy(bad_policy))
    shared.callers._prepare = prepare

    async def main():
        good = asyncio.create_task(shared.generate([[1, 2]]))
        good_one, bad_one = await shared.generate([[1], [13]], SamplingParams(max_tokens=3))
        assert good_one.outputs[0].token_ids == expected([1], 3)
        assert "policy='bad_policy': it fails for this request: ValueError: a policy" in bad_one.error
        with pytest.raises(MemoryError, match="a compiler"):
            await shared.generate([[1]], SamplingParams(max_tokens=13))
        asked = shared.ask([[1]], LONG)
        broken = AsyncStream(shared.callers, asked, lambda progress, outputs: [1 / 0 for _ in progress])
        with pytest.raises(ZeroDivisionError):
            await anext(broken)
        (output,) = await good
        return output.outputs[0].token_ids

    assert run(main()) == expected([1, 2], 100) and shared.is_clean()


def test_whoever_else_has_the_engine_is_named_and_goes_on():
    shared = Shared()

    async def refused(match):
        with pytest.raises(JBatchError, match=match):
            await shared.generate([[1, 2]])
        with pytest.raises(JBatchError, match=match):
            await anext(shared.stream([[1, 2]]))

    async def main():
        shared.engine.add_request("mine", [1, 2], SamplingParams(max_tokens=2))
        await refused("1 unfinished requests: step it first")
        assert tiny_engine.drain(shared.engine)["mine"].outputs[0].token_ids == [5, 11]

        sync = stream(shared.engine, shared.ask([[1, 2]], SamplingParams(max_tokens=2)))
        deltas = [next(sync)]
        await refused("stream has the engine, with 1 unfinished")
        assert "".join(delta.text for delta in (*deltas, *sync)) == "05.11."

        running = shared.stream([[1, 2], [3]], LONG)
        await anext(running)
        with pytest.raises(JBatchError, match=r"^astream or agenerate has the engine, with [12] unfinished"):
            list(stream(shared.engine, shared.ask([[1, 2]], LONG)))
        return await text_of(running)

    run(main())
    assert shared.is_clean()


def test_a_prompt_that_fails_in_its_own_way_is_refused_by_name():
    class Odd(list):
        def __iter__(self):
            raise ValueError("no such list")

    odd, even = run(Shared().generate([Odd([1, 2]), [1, 2]], SamplingParams(max_tokens=2)))
    assert "prompt=" in odd.error and odd.error.endswith("ValueError: no such list")
    assert even.outputs[0].token_ids == [5, 11]


def test_outputs_that_nobody_took_before_a_call_are_there_after_it():
    shared = Shared()
    shared.engine.add_request("aborted", [1, 2], LONG)
    shared.engine.abort("aborted")
    shared.engine.add_request("empty", [1, 2], SamplingParams(max_tokens=0))
    (output,) = run(shared.generate([[1, 2]], SamplingParams(max_tokens=2)))
    assert output.outputs[0].token_ids == [5, 11]
    assert list(tiny_engine.drain(shared.engine)) == ["aborted", "empty"] and shared.is_clean()


def test_a_second_reader_of_a_stream_is_refused_and_the_first_goes_on():
    shared = Shared()
    entered, go = shared.block_steps()

    async def main():
        deltas = shared.stream([[1, 2]], SamplingParams(max_tokens=3))
        first = asyncio.create_task(text_of(deltas))
        await until(entered.is_set)
        for _ in range(2):
            with pytest.raises(JBatchError, match="another task awaits this stream's next item"):
                await text_of(deltas)
        go.set()
        return await first

    assert run(main()) == "05.11.23." and shared.is_clean()


def test_by_hand_nobody_steps_or_adds_while_a_call_has_the_engine():
    """The outputs would go to the wrong one. To abort is everybody's right."""
    shared = Shared()
    deltas = stream(shared.engine, shared.ask([[1, 2], [3]], SamplingParams(max_tokens=5)))
    texts = [next(deltas)]
    for _ in range(2):
        with pytest.raises(JBatchError, match="stream has the engine, with 2 unfinished"):
            shared.engine.step()
        with pytest.raises(JBatchError, match="stream has the engine, with 2 unfinished"):
            shared.engine.add_request("mine", [1, 2])
    shared.engine.abort("1")
    texts += deltas
    assert "".join(delta.text for delta in texts if delta.prompt_idx == 0) == "05.11.23.47.95."
    assert [delta.finish_reason for delta in texts if delta.finish_reason] == ["abort", "length"]
    shared.engine.add_request("mine", [1, 2], SamplingParams(max_tokens=2))
    assert tiny_engine.drain(shared.engine)["mine"].outputs[0].token_ids == [5, 11] and shared.is_clean()


def test_closing_ends_all_calls():
    shared = Shared()
    entered, go = shared.block_steps()

    async def main():
        task = asyncio.create_task(shared.generate([[1, 2]]))
        await until(entered.is_set)
        threading.Timer(0.05, go.set).start()
        shared.callers.close()
        with pytest.raises(JBatchError, match="closed"):
            await task

    run(main())
    shared.callers.close()
    assert shared.is_clean() and shared.callers._thread is None


def test_outputs_that_another_took_are_an_error_and_no_endless_loop():
    shared = Shared()
    driver = Driver(shared.engine, "generate")
    driver.begin()
    (asked,) = shared.ask([[1, 2]], SamplingParams(max_tokens=1))
    driver.add(asked)
    driver.call(tiny_engine.drain, shared.engine)
    with pytest.raises(JBatchError, match="1 requests of generate ended in another's step"):
        driver.step()
    driver.leave()
    assert shared.is_clean()


def test_a_driver_that_an_interrupt_kept_from_leaving_is_cleared_away():
    shared = Shared()
    first, second = Driver(shared.engine, "generate"), Driver(shared.engine, "generate")
    first.begin()
    first.add(*shared.ask([[1, 2]], LONG))
    first.step()
    with pytest.raises(JBatchError, match="generate has the engine, with 1 unfinished"):
        second.begin()
    first.left = True
    second.begin()
    assert shared.engine.driver is second and not shared.engine.has_unfinished
    first.leave()  # too late: nothing to do
    assert shared.engine.driver is second
    second.leave()
    assert shared.is_clean()


def test_a_request_error_in_a_policy_refuses_its_prompt():
    shared = Shared()

    def policy(request, now, view):
        raise RequestError("priority", 1, "is none")

    shared.engine.scheduler.config = shared.engine.scheduler.config._replace(policy=Policy(policy))
    (output,) = run(shared.generate([[1, 2]]))
    assert "priority" in output.error and shared.is_clean()
