"""An engine on a fake device that asynchronous calls share."""

import asyncio
import threading

from jbatch.engine.callers import AsyncStream, Callers
from jbatch.engine.prompts import UncheckedRequest
from jbatch.engine.stream import Deltas
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers import tiny_engine
from tests.helpers.invariants import check_invariants
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
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
