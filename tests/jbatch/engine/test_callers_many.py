"""Many asynchronous calls on one engine share its batch, and wait for nobody else."""

import asyncio
import contextlib
import random
import threading

import pytest

from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import continuation
from tests.helpers.schedules import VOCAB_SIZE
from tests.helpers.shared_engine import Shared, expected, run, text_of, until
from tests.helpers.sizes import sized

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
