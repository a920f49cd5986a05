"""Asynchronous calls on one engine: each has its own, whatever the others do."""

import asyncio
import contextlib
import gc
import threading
import time

import pytest

from jbatch.engine.stream import stream
from jbatch.sampling_params import SamplingParams
from tests.helpers.shared_engine import LONG, Shared, expected, run, text_of, until

# One call.


def plain(deltas):
    return [(d.prompt_idx, d.sample_idx, d.text, d.token_ids, d.finish_reason) for d in deltas]


def test_deltas_are_those_of_stream_and_steps_run_in_a_thread():
    shared, threads = Shared(), set()
    asked = shared.ask([[1, 2]] * 3, SamplingParams(max_tokens=6))
    alone = list(stream(shared.engine, asked))
    step = shared.engine.step

    def noted():
        threads.add(threading.get_ident())
        return step()

    async def main():
        return [delta async for delta in shared.stream([[1, 2]] * 3, SamplingParams(max_tokens=6))]

    shared.engine.step = noted
    assert plain(run(main())) == plain(alone) and shared.is_clean()
    assert threading.get_ident() not in threads and len(threads) == 1
    assert len(shared.prepared) == 3, "what requests need is compiled before"


def test_the_event_loop_goes_on_during_a_step():
    shared = Shared()
    entered, go = shared.block_steps()

    async def main():
        task = asyncio.create_task(text_of(shared.stream([[1, 2]], SamplingParams(max_tokens=3))))
        await until(entered.is_set)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
        return await task

    assert run(main()) == "05.11.23." and shared.is_clean()


def test_a_call_of_no_prompts_and_one_of_refused_ones():
    shared = Shared()

    async def main():
        assert await shared.generate([]) == [] and [delta async for delta in shared.stream([])] == []
        (delta,) = [delta async for delta in shared.stream([""])]
        assert delta.finish_reason == "error" and "must not be empty" in delta.output.error
        first, second = await shared.generate(["", [1, 2]], SamplingParams(max_tokens=2))
        assert first.error and second.outputs[0].token_ids == [5, 11]

    run(main())
    assert shared.is_clean()


def test_a_stream_that_is_not_read_costs_nothing():
    shared = Shared()

    async def main():
        unread = shared.stream([[1, 2]])
        await unread.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(unread)
        shared.stream([[1, 2]])

    run(main())
    assert shared.callers._thread is None and not shared.prepared


# Leaving early.


@pytest.mark.parametrize("how", ["break", "aclose", "error"])
def test_leaving_early_leaves_the_engine_clean(how):
    shared = Shared(num_rows=2)

    async def main():
        prompts = [[1, 2]] * 3
        if how == "break":
            async for _ in shared.stream(prompts):
                break
        elif how == "aclose":
            async with contextlib.aclosing(shared.stream(prompts)) as deltas:
                assert await anext(deltas) and shared.engine.num_unfinished == 3
            assert shared.is_clean(), "aclose returns before its pages are free"
            with pytest.raises(StopAsyncIteration):
                await anext(deltas)
        else:
            with contextlib.suppress(ZeroDivisionError):
                async for _ in shared.stream(prompts):
                    1 / 0
        gc.collect()

    run(main())
    shared.callers.settle()
    assert shared.is_clean() and shared.callers._thread is None


def test_a_synchronous_call_waits_for_those_who_leave():
    """They take a step at most; it is not refused for that."""
    shared = Shared()
    entered, go = shared.block_steps()

    async def main():
        deltas = shared.stream([[1, 2]])
        task = asyncio.create_task(anext(deltas))
        await until(entered.is_set)
        del deltas
        threading.Timer(0.05, go.set).start()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    (delta, *_) = stream(shared.engine, shared.ask([[1, 2]], LONG))
    assert delta.text == "05." and shared.is_clean()


def test_a_cancelled_task_aborts_its_requests_and_no_others():
    shared = Shared()
    entered, go = shared.block_steps()

    async def main():
        tasks = [
            asyncio.create_task(text_of(shared.stream([[1, idx]], SamplingParams(max_tokens=40))))
            for idx in range(3)
        ]
        await until(entered.is_set)
        tasks[1].cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert shared.engine.num_unfinished <= 2
        return [await tasks[0], await tasks[2]]

    texts = run(main())
    assert texts == ["".join(f"{t:02d}." for t in expected([1, idx], 40)) for idx in (0, 2)]
    assert shared.is_clean()


def test_aclose_from_another_task_ends_the_iteration():
    shared = Shared()

    async def main():
        deltas = shared.stream([[1, 2]])
        reader = asyncio.create_task(text_of(deltas))
        await until(lambda: shared.engine.num_unfinished)
        await deltas.aclose()
        return await reader

    assert "".join(f"{t:02d}." for t in expected([1, 2], 100)).startswith(run(main())) and shared.is_clean()


def test_an_event_loop_that_ends_takes_its_calls_along():
    """Also where their streams are kept: nobody will read them."""
    shared, kept = Shared(), []
    step = shared.engine.step
    shared.engine.step = lambda: (time.sleep(0.002), step())[1]  # else all may be over before it is blocked

    async def main():
        kept.append(shared.stream([[1, 2]], SamplingParams(max_tokens=100)))
        await anext(kept[0])
        entered, go = shared.block_steps()
        await until(entered.is_set)
        return go

    go = run(main())
    thread = shared.callers._thread
    go.set()
    thread.join(60)
    assert not thread.is_alive() and shared.is_clean() and shared.engine.runner.num_steps < 50
