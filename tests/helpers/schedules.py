"""Random schedules: a scheduler on a FakeRunner, driven by a seed, checked after every step."""

from __future__ import annotations

import dataclasses
import random
from collections import deque

from jbatch.fake_runner import FakeRunner, continuation
from jbatch.metrics import StepRecord
from jbatch.pages import PagePool
from jbatch.plan import Bucket, StepPlan, pack
from jbatch.policy import MODES, POLICIES
from jbatch.request import FinishReason, Request, SamplingParams, Sequence
from jbatch.scheduler import Scheduler, SchedulerConfig, StepLimits
from tests.helpers.invariants import check_invariants

VOCAB_SIZE = 97


def buckets(kind: str, sizes: tuple[tuple[int, int], ...]) -> tuple[Bucket, ...]:
    return tuple(Bucket(kind, slots, tokens) for slots, tokens in sizes)


def scheduler_config(**changes) -> SchedulerConfig:
    """A small one, to be changed by name."""
    default = SchedulerConfig(
        num_rows=4,
        num_pages=17,
        page_size=16,
        max_model_len=128,
        decode_buckets=buckets("decode", ((1, 1), (2, 2), (4, 4))),
        prefill_buckets=buckets("prefill", ((2, 32), (4, 64))),
        policy=POLICIES["fcfs"],
        admission=MODES["continuous"],
    )
    return default._replace(**changes)


def request(prompt: list[int], max_tokens: int, stop_ids: tuple[int, ...] = (), **fields) -> Request:
    params = SamplingParams(temperature=0.0, min_tokens=fields.pop("min_tokens", 0), stop_token_ids=stop_ids)
    return Request(
        request_id=fields.pop("request_id", "r"),
        prompt_token_ids=tuple(prompt),
        params=params,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        seed=0,
        **fields,
    )


@dataclasses.dataclass
class Driver:
    """A scheduler, a fake device and what is in flight between them, `depth` steps ahead."""

    scheduler: Scheduler
    depth: int = 1

    def __post_init__(self) -> None:
        config = self.scheduler.config
        pages_per_seq = -(-config.max_model_len // config.page_size)
        self.runner = FakeRunner(config.num_rows, config.num_pages, config.page_size, pages_per_seq, VOCAB_SIZE)
        self.in_flight: deque = deque()
        self.records: list[StepRecord] = []
        self.num_tokens = 0
        self.idle_steps = 0

    def step(self, now: float = 0.0) -> StepPlan | None:
        """Schedule and submit, then collect and apply what is `depth` steps old; checks all invariants."""
        config = self.scheduler.config
        plan = self.scheduler.schedule(now)
        if plan is not None:
            self._check_plan(plan)
            handle = self.runner.submit(pack(plan, config.num_rows, config.page_size))
            self.in_flight.append((plan, handle))
        if self.in_flight and (plan is None or len(self.in_flight) > self.depth):
            done, handle = self.in_flight.popleft()
            progress, record = self.scheduler.apply(done, self.runner.collect(handle)[0])
            assert record.useful + record.padded + record.wasted + record.recomputed == record.computed
            assert record.output_tokens == sum(len(p.token_ids) for p in progress)
            assert min(record.useful, record.padded, record.wasted, record.recomputed) >= 0
            self.records.append(record)
            self.num_tokens += record.output_tokens
        elif plan is None:
            self.idle_steps += 1
            assert not self.scheduler.has_unfinished, "work waits, and nothing is under way"
        check_invariants(self.scheduler)
        return plan

    def drain(self) -> None:
        """Step until idle."""
        while self.scheduler.has_unfinished or self.in_flight:
            self.step()

    def _check_plan(self, plan: StepPlan) -> None:
        config = self.scheduler.config
        bucket, used = plan.bucket, len(plan.seq_ids)
        fits = config.prefill_buckets if bucket.kind == "prefill" else config.decode_buckets
        num_tokens = sum(-(-len(c.token_ids) // 8) * 8 for c in plan.chunks) if plan.chunks else used
        assert 0 < used <= bucket.slots and num_tokens <= bucket.tokens
        smaller = [b for b in fits if b.slots >= used and b.tokens >= num_tokens]
        assert bucket == smaller[0], "a smaller bucket would do"
        assert len(set(plan.seq_ids)) == used
        assert all(0 < update.page_id < config.num_pages for update in plan.table_updates)


def random_config(rng: random.Random) -> SchedulerConfig:
    num_rows = rng.choice((1, 2, 4, 6))
    decode = tuple((n, n) for n in sorted({1, 2, num_rows}) if n <= num_rows)
    chunk = rng.choice((8, 16, 32, 64))
    prefill = tuple((min(num_rows, max(1, n // 16)), n) for n in sorted({8, chunk}))
    page_size = rng.choice((4, 16))  # smaller than any device's, so that more happens
    return scheduler_config(
        num_rows=num_rows,
        num_pages=rng.randint(2, 16),
        page_size=page_size,
        max_model_len=rng.choice((32, 64)),
        decode_buckets=buckets("decode", decode),
        prefill_buckets=buckets("prefill", prefill),
        policy=POLICIES[rng.choice(list(POLICIES))],
        admission=MODES[rng.choice(list(MODES))],
    )


def random_request(rng: random.Random, room: int) -> Request:
    prompt_len = rng.randint(1, room - 1)
    max_tokens = rng.randint(1, room - prompt_len)
    stop_ids = tuple(rng.sample(range(VOCAB_SIZE), rng.choice((0, 1, 8))))
    return request(
        [rng.randrange(VOCAB_SIZE) for _ in range(prompt_len)],
        max_tokens,
        stop_ids,
        min_tokens=rng.choice((0, min(3, max_tokens))),
        arrival=float(rng.randrange(4)),
        priority=rng.randrange(3),
        predicted_len=rng.choice((None, rng.randrange(32))),
    )


def run_random_schedule(seed: int) -> Driver:
    """Arrivals, aborts and ends at random; every sequence not aborted gets exactly its tokens."""
    rng = random.Random(seed)
    config = random_config(rng)
    limits = None
    if rng.random() < 0.3:
        token_limit, seq_limit = rng.choice((1, 7, 16)), rng.randint(1, config.num_rows)

        def limits(view):
            return StepLimits(token_limit, seq_limit)

    driver = Driver(Scheduler(config, limits), depth=rng.randint(0, 2))
    scheduler = driver.scheduler
    room = min(config.max_model_len, scheduler.pool.num_usable * config.page_size)
    sequences: list[Sequence] = []
    for _ in range(rng.randint(1, 12)):
        sequences.append(scheduler.add(random_request(rng, room)))
        for _ in range(rng.choice((0, 0, 1, 5))):
            driver.step()
        if rng.random() < 0.1:
            scheduler.finish(rng.choice(sequences), FinishReason.ABORT)
            check_invariants(scheduler)
    driver.drain()
    for sequence in sequences:
        check_tokens(sequence)
    assert not scheduler.has_unfinished
    assert driver.num_tokens >= sum(len(s.output_token_ids) for s in sequences if s.finish_reason != "abort")
    return driver


def check_tokens(sequence: Sequence) -> None:
    """A sequence that ended has the tokens that the definition gives, and the right reason."""
    asked = sequence.request
    expected = continuation(
        asked.prompt_token_ids, asked.max_tokens, VOCAB_SIZE, asked.stop_ids, asked.params.min_tokens
    )
    got = sequence.output_token_ids
    if sequence.finish_reason == FinishReason.ABORT:
        assert got == expected[: len(got)]
    else:
        assert got == expected
        stopped = bool(asked.stop_ids) and expected[-1] in asked.stop_ids
        assert sequence.finish_reason == (FinishReason.STOP if stopped else FinishReason.LENGTH)


def pool_is_empty(pool: PagePool) -> bool:
    return pool.num_free == pool.num_usable
