"""The loop of a job inside this process, on the fake runner."""

from __future__ import annotations

import functools
import io
import json

import numpy as np

from jbatch.engine.engine import Engine
from jbatch.engine.eta import TokensLeft
from jbatch.errors import RequestError
from jbatch.host.scheduler import Scheduler
from jbatch.jobs.answerer import Answerer
from jbatch.jobs.input import read_lines
from jbatch.jobs.ledger import Ledger
from jbatch.jobs.lookahead import in_groups
from jbatch.jobs.loop import Job
from jbatch.jobs.request_line import parse_line
from jbatch.jobs.resume import Done
from jbatch.jobs.summary import JobSummary
from jbatch.sampling_params import MAX_LOGPROB_TOKEN_IDS, MAX_LOGPROBS
from jbatch.seam.step_output import Logprobs
from jbatch.sim.fake_runner import FakeRunner
from tests.helpers import tiny_engine
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tokenizers import numbered, wrapped


class Kept:
    """An output in memory."""

    def __init__(self, fail_at: int = -1):
        self.results, self.num_syncs, self._fail_at = [], 0, fail_at

    def write(self, result: bytes) -> int:
        if len(self.results) == self._fail_at:
            raise OSError(28, "full")
        self.results.append(json.loads(result))
        return len(self.results) - 1

    def sync(self, *, now: bool = False) -> None:
        self.num_syncs += 1


class ReportingRunner(FakeRunner):
    """It makes up log-probabilities too: of every token -0.5, behind which come tokens 3, 4, ..."""

    def submit(self, step):
        output = super().submit(step)
        if not step.sampler.reports:
            return output
        of_prompt = made_up_logprobs(step.bucket.tokens) if step.bucket.tokens else None
        return output._replace(logprobs=made_up_logprobs(len(output.tokens)), prompt_logprobs=of_prompt)


def made_up_logprobs(num: int) -> Logprobs:
    top_ids = np.tile(np.arange(3, 3 + MAX_LOGPROBS, dtype=np.int32), (num, 1))
    tops = -1 - np.arange(MAX_LOGPROBS, dtype=np.float32) * np.ones((num, 1), np.float32)
    by_id = np.full((num, MAX_LOGPROB_TOKEN_IDS), -9, np.float32)
    return Logprobs(np.full(num, -0.5, np.float32), np.full(num, 1, np.int32), top_ids, tops, by_id)


def make_engine(tokenizer=None, runner=FakeRunner) -> Engine:
    config = scheduler_config()
    runner = runner(config.shape, VOCAB_SIZE)
    options = {"vocab_size": VOCAB_SIZE, "tokenizer": tokenizer or wrapped(numbered()), "seed": 5}
    return tiny_engine.make_engine(Scheduler(config), runner, **options)


def no_template(messages, options):
    raise RequestError("messages", messages, "no chat template", code="no_chat_template")


def answer(
    *lines,
    engine=None,
    output=None,
    encode_chat=no_template,
    stop=lambda: False,
    on_step=lambda: None,
    tokens_left=None,
    most=1,
):
    """Run a job on some lines, each JSON or bytes; whether it came to its end, what it wrote, the ledger."""
    engine, output = engine or make_engine(), output or Kept()
    data = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    parse = functools.partial(parse_line, defaults={"temperature": 0, "max_tokens": 3})
    ledger = Ledger(output, Done(len(lines)), JobSummary())
    tokens_left = tokens_left or TokensLeft(3, len(lines))
    job = Job(Answerer(engine, parse, encode_chat, lambda: 0), ledger, tokens_left)
    try:
        ended = job.run(in_groups(read_lines(io.BytesIO(data)), most), stop, on_step)
    finally:
        assert not engine.has_unfinished and engine.scheduler.pool.num_used == 0, "something is left behind"
    return ended, output.results, ledger


def error_code(result):
    return (result.get("error") or {}).get("code")
