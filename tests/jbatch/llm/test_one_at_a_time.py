"""Who may call when, and what interrupts and failures leave behind."""

import asyncio
import contextlib
import dataclasses
import random
import signal
import threading
import time

import pytest

from jbatch import LLM
from jbatch.errors import JBatchError
from tests.helpers.small_llm import GREEDY, SMALL, ids_of


def test_another_thread_may_prepare_but_not_generate_while_one_generates(model_dir):
    with LLM(model_dir, **SMALL) as llm:
        prompts, params = [[idx, 6] for idx in range(12)], dataclasses.replace(GREEDY, max_tokens=20)
        expected, found = ids_of(llm.generate(prompts, params)), []
        step, entered, go = llm.engine.step, threading.Event(), threading.Event()

        def slow():
            entered.set()
            assert go.wait(60)
            return step()

        llm.engine.step = slow
        thread = threading.Thread(target=lambda: found.extend(ids_of(llm.generate(prompts, params))))
        thread.start()
        assert entered.wait(60)
        with pytest.raises(JBatchError, match="generate has the engine, with 12 unfinished"):
            llm.generate([5, 6], GREEDY)
        with pytest.raises(JBatchError, match="another engine has 12 unfinished"):
            llm.new_engine().add_request("mine", [5, 6], GREEDY)
        go.set()
        llm.prepare([dataclasses.replace(GREEDY, logprobs=1)])
        thread.join(60)
        assert found == expected


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_an_interrupt_leaves_the_engine_clean(llm, monkeypatch, after):
    prompts = [[5, 6], [1, 2, 3], [9] * 30, [4], [8], [7]]
    expected = ids_of(llm.generate(prompts, GREEDY))
    step, steps = llm.engine.step, []

    def interrupted():
        if len(steps) == after:
            raise KeyboardInterrupt
        steps.append(step())
        return steps[-1]

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(prompts, GREEDY)
    monkeypatch.undo()
    assert llm.engine.num_unfinished == 0 and llm.engine.scheduler.pool.num_used == 0
    assert ids_of(llm.generate(prompts, GREEDY)) == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some come within a __del__
def test_a_hundred_signals_at_any_time(llm):
    """The next call works, and gives what it always gives."""
    prompts = [[5, 6], [1, 2, 3], [9] * 30, [4]]
    params = [dataclasses.replace(GREEDY, max_tokens=idx + 1) for idx in range(4)]
    expected, rng, interrupted = ids_of(llm.generate(prompts, params)), random.Random(0), 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(100):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.012))
                end = time.monotonic() + 10
                while time.monotonic() < end:
                    llm.generate(prompts, params)
            interrupted += time.monotonic() < end
            assert llm.generate(prompts[:1], params[:1])[0].outputs[0].token_ids == expected[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 90 and ids_of(llm.generate(prompts, params)) == expected
    assert llm.engine.scheduler.pool.num_used == 0 and not llm.engine.has_unfinished


def test_many_calls_share_the_engine(llm):
    """Each has what it has alone, and one that is cancelled takes no other along."""
    prompts = [[idx, 7] for idx in range(8)]
    alone = llm.generate(prompts, GREEDY)
    expected, texts = ids_of(alone), [output.outputs[0].text for output in alone]

    async def streamed(prompt):
        return "".join([delta.text async for delta in llm.astream([prompt], GREEDY)])

    async def main():
        tasks = [asyncio.create_task(llm.agenerate(prompt, GREEDY)) for prompt in prompts]
        tasks[3].cancel()
        streams = await asyncio.gather(*map(streamed, prompts))
        return streams, await asyncio.gather(*tasks, return_exceptions=True)

    streams, outputs = asyncio.run(asyncio.wait_for(main(), 120))
    assert streams == texts and isinstance(outputs.pop(3), asyncio.CancelledError)
    assert ids_of(output for (output,) in outputs) == expected[:3] + expected[4:]
    with pytest.raises(ValueError, match="2 sampling_params for 1 prompts"):
        llm.astream([[1]], [GREEDY] * 2)


def test_a_synchronous_call_says_how_many_can_share(llm):
    async def main():
        running = llm.astream([[5, 6]], GREEDY)
        await anext(running)
        for call in (llm.generate, lambda prompts: list(llm.stream(prompts))):
            with pytest.raises(JBatchError, match="calls of astream and agenerate share one, any number"):
                call([[1]])
        await running.aclose()
        return ids_of(llm.generate([[5, 6]], GREEDY))

    assert asyncio.run(main()) == ids_of(llm.generate([[5, 6]], GREEDY))


def test_a_device_that_fails_raises_and_leaves_the_engine_clean(llm, monkeypatch):
    expected = ids_of(llm.generate([[5, 6]], GREEDY))
    monkeypatch.setattr(llm.runner, "collect", lambda handle: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        llm.generate([[5, 6], [7]], GREEDY)
    monkeypatch.undo()
    assert llm.engine.num_unfinished == 0 and llm.engine.scheduler.pool.num_used == 0
    assert ids_of(llm.generate([[5, 6]], GREEDY)) == expected


# Construction.


def test_generate_leaves_nothing_in_flight(llm):
    llm.generate([[5, 6], [7]], GREEDY)
    assert not llm.engine.has_unfinished


def test_generate_refuses_to_mix_with_requests_added_by_hand(llm):
    llm.engine.add_request("mine", [5, 6], GREEDY)
    with pytest.raises(JBatchError, match="1 unfinished"):
        llm.generate([5, 6], GREEDY)
    llm.engine.abort("mine")
    assert len(llm.generate([5, 6], GREEDY)) == 1
