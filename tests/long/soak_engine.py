"""Many requests of all kinds through one engine, and what it takes while they run."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import NamedTuple

from jbatch.device.runner import Runner
from jbatch.engine.engine import Engine
from jbatch.host.config import SchedulerConfig
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason, RequestOutput
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import Bucket, decode_bucket
from jbatch.seam.shape import StateShape
from tests.helpers import tiny_engine
from tests.helpers.tokenizers import numbered, wrapped

NUM_ROWS, NUM_PAGES, MAX_MODEL_LEN = 16, 16, 64
WINDOWS = 20  # into which a run is divided
WAITING = 4 * NUM_ROWS
MAX_GROWTH = {"rss_mib": 0.02, "files": 0.0, "pages": 0.15, "host_us": 0.15}  # from second to last quarter
VOCAB_SIZE = 96


class Window(NamedTuple):
    """One part of a run."""

    num_requests: int
    rss_mib: float
    files: float
    pages: float  # in use after a step, on average
    host_us: float  # of this thread, for one request: all but waiting for the device


def make_engine() -> Engine:
    """On compiled steps of a tiny model, with too few pages for all that may run."""
    shape = StateShape(NUM_ROWS, NUM_PAGES, tiny_engine.PAGE_SIZE, MAX_MODEL_LEN // tiny_engine.PAGE_SIZE)
    buckets = (decode_bucket(NUM_ROWS), Bucket(NUM_ROWS, 64))
    runner = tiny_engine.make_runner(Sampler.PLAIN, Sampler.LOGPROBS, shape=shape, buckets=buckets)
    config = tiny_engine.make_scheduler().config
    config = SchedulerConfig(shape, MAX_MODEL_LEN, buckets, config.policy, config.admission)
    tokenizer = wrapped(numbered(VOCAB_SIZE))
    return tiny_engine.make_engine(Scheduler(config), runner, tokenizer=tokenizer)


def draw_params(rng: random.Random) -> SamplingParams:
    """Short ones of every kind; one in sixteen is long."""
    kind = rng.randrange(16)
    stop = [f"{rng.randrange(VOCAB_SIZE):02d}." for _ in range(8)] if kind in (1, 2, 3, 4) else None
    return SamplingParams(
        n=rng.choice((2, 3)) if kind in (4, 5, 6) else 1,
        temperature=rng.choice((0.0, 1.0)),
        max_tokens=40 if kind == 0 else rng.randint(1, 6),
        stop=stop,
        logprobs=2 if kind in (6, 7, 8) else None,
        prompt_logprobs=1 if kind == 8 else None,
        ignore_eos=kind == 0,
    )


class Run:
    """Keeps some requests waiting, aborts some, and checks what each ends with."""

    def __init__(self, engine: Engine, num_requests: int):
        self.engine, self.num_requests = engine, num_requests
        self._rng = random.Random(0)
        self._open: dict[str, tuple[SamplingParams, bool]] = {}  # what was asked, and whether it was aborted
        self._num_added = self.num_ended = self.num_aborted = self.num_stopped = 0

    def window(self, num: int) -> Window:
        """Until so many requests more have ended."""
        until, num_steps, pages = self.num_ended + num, 0, 0
        cpu = time.thread_time()
        while self.num_ended < until and (self._open or self._num_added < self.num_requests):
            self._add()
            step = self.engine.step()
            for output in step.outputs:
                self._end(output)
            pages += self.engine.scheduler.pool.num_used
            num_steps += 1
        host_us = 1e6 * (time.thread_time() - cpu) / num
        files = len(os.listdir("/proc/self/fd"))
        return Window(self.num_ended, rss_mib(), files, pages / num_steps, host_us)

    def _add(self) -> None:
        while len(self._open) < WAITING and self._num_added < self.num_requests:
            request_id, params = str(self._num_added), draw_params(self._rng)
            prompt = [self._rng.randrange(VOCAB_SIZE) for _ in range(self._rng.randint(1, 20))]
            self.engine.add_request(request_id, prompt, params)
            self._open[request_id] = params, False
            self._num_added += 1
            if self._rng.random() < 0.05:
                request_id = self._rng.choice(tuple(self._open))
                self.engine.abort(request_id)
                self._open[request_id] = self._open[request_id][0], True

    def _end(self, output: RequestOutput) -> None:
        params, aborted = self._open.pop(output.request_id)  # each once
        self.num_ended += 1
        self.num_aborted += aborted
        if output.error is not None or len(output.outputs) != params.n:
            raise SystemExit(f"request {output.request_id}: {output.error or output.outputs}")
        for sample in output.outputs:
            self.num_stopped += sample.finish_reason == FinishReason.STOP
            if sample.finish_reason == FinishReason.ABORT and not aborted:
                raise SystemExit(f"request {output.request_id} was aborted by nobody")
            if params.logprobs is not None and len(sample.logprobs or ()) != len(sample.token_ids):
                raise SystemExit(f"request {output.request_id} has not all log-probabilities")
            whole = sample.finish_reason == FinishReason.LENGTH
            if whole and len(sample.token_ids) != params.max_tokens:
                raise SystemExit(f"request {output.request_id} is of the wrong length")


def rss_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(num_requests: int) -> None:
    engine = make_engine()
    run, begin = Run(engine, num_requests), time.monotonic()
    print("requests   RSS MiB  files  pages  host us")
    windows = []
    for _ in range(WINDOWS):
        windows.append(run.window(num_requests // WINDOWS))
        print("{:8} {:9.1f} {:6.0f} {:6.1f} {:8.0f}".format(*windows[-1]), flush=True)
    summary, pool = engine.summary, engine.scheduler.pool
    print(
        f"{run.num_ended} requests in {summary.num_steps} steps, {time.monotonic() - begin:.0f} s: "
        f"{run.num_aborted} aborted, {run.num_stopped} samples ended by a stop, {summary.num_preempted} "
        f"preemptions, {runner_of(engine).compilations_after_warmup} compilations"
    )
    if run.num_ended != num_requests or engine.has_unfinished or pool.num_used:
        raise SystemExit(f"{run.num_ended} requests ended, and {pool.num_used} pages are still in use")
    check_flat(windows)


def runner_of(engine: Engine) -> Runner:
    assert isinstance(engine.runner, Runner)
    return engine.runner


def check_flat(windows: list[Window]) -> None:
    """From the second quarter to the last nothing grows."""
    quarter = len(windows) // 4
    for name, most in MAX_GROWTH.items():
        second, last = (
            sum(getattr(window, name) for window in part) / quarter
            for part in (windows[quarter : 2 * quarter], windows[-quarter:])
        )
        print(f"{name}: {second:.1f} in the second quarter, {last:.1f} in the last: {last / second - 1:+.2%}")
        if last / second - 1 > most:
            raise SystemExit(f"{name} grows")
