"""Many asynchronous calls on one engine: each has its own, whatever the others do."""

import asyncio
import contextlib
import gc
import random
import threading
import time

import pytest

from jbatch.engine.callers import AsyncStream, Callers
from jbatch.engine.driver import Driver
from jbatch.engine.prompts import UncheckedRequest
from jbatch.engine.stream import Deltas, stream
from jbatch.errors import JBatchError, RequestError
from jbatch.host.policy import Policy
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers import tiny_engine
from tests.helpers.invariants import check_invariants
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.sizes import sized
from tests.helpers.tokenizers import numbered, wrapped

LONG = SamplingParams(max_tokens=100)


class Shared:
    """An engine on a fake device, its callers, and calls of all kinds."""

    def __init__(self, **config):
        config = scheduler_config(**config)
        runner = FakeRunner(config.shape, VOCAB_SIZE)
        tokenizer = wrapped(numbered())
        self.engine = tiny_engine.make_engine(
            Scheduler(config), runner, vocab_size=VOCAB_SIZE, tokenizer=tokenizer
        )
        self.prepared = []
        self.callers = Callers(self.engine, lambda params: self.prepared.extend(params))
        self.num_requests = 0

    def ask(self, prompts, params):
        begin, self.num_requests = self.num_requests, self.num_requests + len(prompts)
        return [
            UncheckedRequest(str(begin + idx), prompt, params, prompt_idx=idx)
            for idx, prompt in enumerate(prompts)
        ]

    def stream(self, prompts, params=LONG):
        asked = self.ask(prompts, params)
        return AsyncStream(self.callers, asked, Deltas(self.engine.tokenizer, asked).take_in)

    async def generate(self, prompts, params=LONG):
        asked = self.ask(prompts, params)
        outputs = AsyncStream(self.callers, asked, lambda progress, outputs: list(outputs))
        by_id = {output.request_id: output async for output in outputs}
        return [by_id[one.request_id] for one in asked]

    def is_clean(self):
        engine = self.engine
        check_invariants(engine.scheduler)
        return not engine.has_unfinished and engine.driver is None and engine.scheduler.pool.num_used == 0

    def block_steps(self):
        """Steps wait; two events: one is entered, and it may go on."""
        step, entered, go = self.engine.step, threading.Event(), threading.Event()

        def blocked():
            entered.set()
            assert go.wait(60)
            return step()

        self.engine.step = blocked
        return entered, go


def run(main, seconds=120):
    return asyncio.run(asyncio.wait_for(main, seconds))


async def text_of(deltas):
    return "".join([delta.text async for delta in deltas])


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def expected(prompt, max_tokens):
    return continuation(prompt, max_tokens, VOCAB_SIZE)


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


# Many calls.


def test_calls_share_the_batch():
    shared = Shared()
    entered, go = shared.block_steps()
    widths = []
    submit = shared.engine.runner.submit

    def noted(step):
        widths.append(step.bucket.slots)
        return submit(step)

    shared.engine.runner.submit = noted

    async def main():
        params = SamplingParams(max_tokens=20)
        first = asyncio.create_task(shared.generate([[1, 0]], params))
        await until(entered.is_set)
        others = [asyncio.create_task(shared.generate([[1, idx]], params)) for idx in range(1, 4)]
        await asyncio.sleep(0)
        go.set()
        return [(await task)[0].outputs[0].token_ids for task in (first, *others)]

    assert run(main()) == [expected([1, idx], 20) for idx in range(4)]
    assert widths.count(4) > 15 and shared.engine.summary.decode_steps < 30


def test_a_slow_reader_holds_nobody_up():
    shared = Shared()

    async def main():
        slow = shared.stream([[7, 7]], SamplingParams(max_tokens=60))
        first = await anext(slow)
        others = await asyncio.gather(*(shared.generate([[1, idx]]) for idx in range(6)))
        assert all(len(outputs[0].outputs[0].token_ids) == 100 for outputs in others)
        return first.text + await text_of(slow)

    assert run(main()) == "".join(f"{t:02d}." for t in expected([7, 7], 60)) and shared.is_clean()


def test_calls_of_several_event_loops_share_an_engine():
    shared, found, barrier = Shared(), {}, threading.Barrier(3)

    def work(idx):
        async def main():
            barrier.wait(60)
            return await asyncio.gather(*(shared.generate([[idx, n]]) for n in range(5)))

        found[idx] = [outputs[0].outputs[0].token_ids for outputs in run(main())]

    threads = [threading.Thread(target=work, args=(idx,)) for idx in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {idx: [expected([idx, n], 100) for n in range(5)] for idx in range(3)}
    shared.callers.settle()
    assert shared.is_clean()


class Many:
    """Tasks that stream, generate, are cancelled, leave early, close or ask for what is refused."""

    def __init__(self, shared, rng):
        self.shared, self.rng = shared, rng
        self.num_checked = self.num_left = 0

    async def main(self, num_tasks):
        tasks = []
        for _ in range(num_tasks):
            tasks.append(asyncio.create_task(self.one(random.Random(self.rng.random()))))
            for _ in range(self.rng.choice((0, 0, 1, 20))):
                await asyncio.sleep(0)
            if self.rng.random() < 0.3:
                self.rng.choice(tasks).cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        cancelled = sum(task.cancelled() for task in tasks)
        self.num_left += cancelled

    async def one(self, rng):
        prompts = [rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 30)) for _ in range(rng.choice((1, 1, 3)))]
        if rng.random() < 0.1:
            prompts[0] = [VOCAB_SIZE]
        n, max_tokens = rng.choice((1, 1, 2)), rng.randint(1, 60)
        params = SamplingParams(n=n, max_tokens=max_tokens)
        if rng.random() < 0.4:
            outputs = await self.shared.generate(prompts, params)
            found = [
                [c.token_ids for c in output.outputs] if not output.error else None for output in outputs
            ]
        else:
            found = await self.read(self.shared.stream(prompts, params), len(prompts), n, rng)
        if found is None:
            self.num_left += 1
            return
        for prompt, samples in zip(prompts, found, strict=True):
            refused = prompt == [VOCAB_SIZE]
            right = [continuation(prompt, max_tokens, VOCAB_SIZE, sample_idx=idx) for idx in range(n)]
            assert samples == (None if refused else right)
            self.num_checked += 1

    async def read(self, deltas, num_prompts, n, rng):
        """The tokens of each prompt and sample; None where it was left early."""
        found = [[[] for _ in range(n)] for _ in range(num_prompts)]
        leave_at = rng.choice((None, None, None, rng.randrange(60)))
        number = 0
        async for delta in deltas:
            if delta.output is not None and delta.output.error:
                found[delta.prompt_idx] = None
            else:
                found[delta.prompt_idx][delta.sample_idx] += delta.token_ids
            number += 1
            if number == leave_at:
                if rng.random() < 0.5:
                    await deltas.aclose()
                return None
        return found


@pytest.mark.parametrize("seed", range(sized(4, 100)))
def test_any_number_of_tasks_that_come_and_go(seed):
    """Few pages, so that there are preemptions: every call that is not left has the tokens of one alone."""
    rng = random.Random(seed)
    shared = Shared(num_rows=rng.choice((2, 3, 4)), num_pages=rng.choice((12, 20, 60)))
    many = Many(shared, rng)
    run(many.main(60))
    shared.callers.settle()
    assert shared.is_clean() and not shared.engine.requests.samples and not shared.engine.requests.unfinished
    assert not shared.callers._calls and not shared.callers._wanted and shared.callers._thread is None
    assert many.num_checked > 20 and many.num_left > 5


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
