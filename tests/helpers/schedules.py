"""Random schedules: a scheduler on a FakeRunner, driven by a seed, checked after every step."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jbatch.errors import JBatchError
from jbatch.host.limits import Company, SchedulerView, StepLimits
from jbatch.host.metrics import StepRecord
from jbatch.host.pack import pack
from jbatch.host.plan import StepPlan
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.host.request import LatencyLimits, Request
from jbatch.host.request import Sequence as Running
from jbatch.host.scheduler import Scheduler, SchedulerConfig
from jbatch.outputs import FinishReason
from jbatch.sampling_params import SamplingParams
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from jbatch.seam.shape import StateShape
from jbatch.seam.step_input import StepInput
from jbatch.seam.step_output import StepOutput
from jbatch.sim.fake_runner import FakeRunner, continuation
from tests.helpers.invariants import (
    PrefixWatch,
    check_invariants,
    check_plan,
    check_record,
    check_running,
    dead_pages,
)

VOCAB_SIZE = 97
MAX_STEPS = 20_000  # of one schedule: more is a hang
HOST_STOP = "stop string"
FINDS = "found", "reachable", "looked_up"
RESERVES = ("optimistic", "optimistic", "optimistic", "forecast", "no-evict")
BATCH_WAIT = 4.0  # of a batch that waits to be full, in steps of the driver


def buckets(tokens: Sequence[int], slots: Sequence[int], mode: str = "continuous") -> tuple[Bucket, ...]:
    """Of steps with prompts, and of decoding ones, as an engine of that mode has them."""
    if not MODES[mode].refill:
        return (*map(prefill_bucket, tokens), *map(decode_bucket, slots))
    mixed = tuple(Bucket(max(slots), size) for size in tokens)
    return mixed if len(tokens) == len(slots) == 1 else (*mixed, *map(decode_bucket, slots))


def scheduler_config(
    mode: str = "continuous",
    policy: str = "fcfs",
    *,
    num_rows: int = 4,
    num_pages: int = 17,
    page_size: int = 16,
    max_model_len: int = 128,
    **changes,
) -> SchedulerConfig:
    """A small one, to be changed by name."""
    default = SchedulerConfig(
        shape=StateShape(num_rows, num_pages, page_size, -(-max_model_len // page_size)),
        max_model_len=max_model_len,
        buckets=buckets((32, 64), (1, 2, 4), mode),
        policy=POLICIES[policy],
        admission=MODES[mode],
        batch_wait_timeout_s=BATCH_WAIT,
    )
    return default._replace(**changes)


def request(
    prompt: list[int],
    max_tokens: int,
    stop_ids: tuple[int, ...] = (),
    min_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    prompt_logprobs: int | None = None,
    **fields,
) -> Request:
    """As the engine makes it from checked parameters."""
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        min_tokens=min_tokens,
        stop_token_ids=stop_ids,
        prompt_logprobs=prompt_logprobs,
    )
    fields = {"request_id": "r", "seed": 0, **fields}
    return Request(
        prompt_token_ids=tuple(prompt), params=params, max_tokens=max_tokens, stop_ids=stop_ids, **fields
    )


class AgeingRunner(FakeRunner):
    """One that knows of what weights each position of its cache is, and never reads one of others."""

    num_updates = 0

    def __init__(self, shape: StateShape, vocab_size: int):
        super().__init__(shape, vocab_size)
        self._written = np.full_like(self.cache, -1)  # the number of updates before

    def submit(self, step: StepInput) -> StepOutput:
        if step.page_copies is not None:
            sources, targets = step.page_copies.T
            self._written[targets] = self._written[sources]
        return super().submit(step)

    def _write(self, row: int, position: int, token_id: int) -> None:
        super()._write(row, position, token_id)
        page_size = self.shape.page_size
        self._written[self._tables[row, position // page_size], position % page_size] = self.num_updates

    def _context(self, row: int, length: int) -> list[int]:
        pages = self._tables[row, : -(-length // self.shape.page_size)]
        assert (self._written[pages].reshape(-1)[:length] == self.num_updates).all(), "of older weights"
        return super()._context(row, length)


class Driver:
    """A scheduler, a fake device and what is in flight between them, `depth` steps ahead.

    `stops(sequence)` tells whether a stop string ends a sequence that just got a token.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        depth: int = 1,
        limits: Callable[[SchedulerView], StepLimits] | None = None,
        stops: Callable[[Running], bool] = lambda sequence: False,
    ):
        self.config, self.depth, self.stops = config, depth, stops
        largest = max(bucket.tokens for bucket in config.buckets)
        self.limits = StepLimits(largest, config.shape.num_rows)
        self._choose_limits = limits
        self.scheduler = Scheduler(config, self._next_limits if limits else None)
        self.runner = AgeingRunner(config.shape, VOCAB_SIZE)
        self.num_retracted = 0
        self.in_flight: deque = deque()
        self.sequences: list[Running] = []
        self.ends: dict[int, tuple[FinishReason, str | int | None, int]] = {}  # reason, stop_reason, length
        self.records: list[StepRecord] = []
        self.smallest_budget = self.limits.max_num_batched_tokens
        self.num_shared = 0  # positions that sequences have from others
        self._covered: dict[int, int] = {}  # by seq_id: positions that have been counted
        self._padded_batch: tuple[int, ...] = ()
        self.now = 0.0  # a step takes a second
        self.num_held = 0  # times that pages were kept
        self.num_saved = 0  # positions that were found, and never computed
        self._begun: set[tuple[int, int]] = set()  # sequences, and how often they had been preempted
        self._prefixes = PrefixWatch()

    def _next_limits(self, view: SchedulerView) -> StepLimits:
        assert view.num_free_pages == self.scheduler.pool.num_free and view.num_running + view.num_waiting
        self.limits = self._choose_limits(view)
        if self.limits.max_num_batched_tokens:
            self.smallest_budget = min(self.smallest_budget, self.limits.max_num_batched_tokens)
        return self.limits

    def submit(self, asked: Request, n: int = 1) -> Running:
        """Queue `n` samples of a request; the first of them."""
        if self.config.admission.wait_full:  # then arrivals are times
            asked = dataclasses.replace(asked, arrival=self.now - asked.arrival)
        family: list[Running] = []
        for idx in range(n):
            self.scheduler.add(dataclasses.replace(asked, sample_idx=idx), family=family)
        self.sequences += family
        return family[0]

    def end(self, sequence: Running, reason: FinishReason, stop_reason: str | None = None) -> None:
        """Abort or stop a sequence in whatever state it is."""
        self.scheduler.finish(sequence, reason, stop_reason)
        self._note_end(sequence)
        check_invariants(self.scheduler)

    def update(self) -> None:
        """Other weights, once what is in flight has ended."""
        while self.in_flight:
            self._apply(*self.in_flight.popleft())
        self.num_retracted += len(self.scheduler.running)
        self.scheduler.retract()
        self.runner.num_updates += 1
        self._padded_batch = ()
        check_invariants(self.scheduler)
        assert not self.scheduler.running and self.scheduler.pool.num_used == 0

    def hold(self, rng: random.Random) -> None:
        """While idle, keep the pages of some sequence's first tokens, if that may be; or let some go."""
        held = self.scheduler.holdings.held
        if held and rng.random() < 0.03:
            self.scheduler.holdings.let_go(rng.choice(list(held)))
        elif self.sequences and not self.scheduler.has_unfinished:
            tokens = rng.choice(self.sequences).token_ids
            with contextlib.suppress(JBatchError):
                self.scheduler.hold(self.num_held, tokens[: rng.randint(0, len(tokens))], None)
                self.num_held += bool(held[self.num_held])
        check_invariants(self.scheduler)

    def _note_end(self, sequence: Running) -> None:
        end = (sequence.finish_reason, sequence.stop_reason, sequence.num_known)
        assert self.ends.setdefault(sequence.seq_id, end) == end, "it ended twice, or grew after its end"

    def step(self) -> StepPlan | None:
        """Schedule and submit, then collect and apply what is `depth` steps old; checks all invariants."""
        self.now += 1.0
        before, waiting = self.scheduler.running, self._waiting()
        plan = self.scheduler.schedule(self.now) if self.scheduler.has_unfinished else None
        fills = self.config.admission.wait_full and not before and self._fills(waiting)
        assert not fills or (plan is None and not self.scheduler.running), "a batch started too early"
        check_running(self.scheduler, before, self.limits)
        if plan is not None:
            check_plan(self.scheduler, plan, self.limits)
            self._check_padded(plan)
            self._note_found(plan)
            self._count_shared(plan)
            handle = self.runner.submit(pack(plan, self.config.shape))
            self.in_flight.append((plan, handle))
        if self.in_flight and (plan is None or len(self.in_flight) > self.depth):
            self._apply(*self.in_flight.popleft())
        elif plan is None:
            assert fills or not self.scheduler.has_unfinished, "work waits, and nothing is under way"
        check_invariants(self.scheduler)
        self._covered |= {s.seq_id: s.num_cached_planned for s in self.scheduler.running if s.decoding}
        self.runner.cache[dead_pages(self.scheduler)] = -1  # the sum of what is read would be another
        self._prefixes.check(self.scheduler, self.sequences, self.runner.cache)
        return plan

    def _note_found(self, plan: StepPlan) -> None:
        page_size = self.config.shape.page_size
        for chunk in plan.chunks:
            sequence = self.scheduler._sequences[chunk.seq_id]
            behind_prompt = len(sequence.family) > 1 and chunk.start in range(
                sequence.num_prompt - 1, sequence.num_prompt + 1
            )
            assert chunk.start % page_size == 0 or behind_prompt, "a chunk begins within a page"
            assert chunk.end % page_size == 0 or chunk.end == sequence.num_known, "it ends within one"
            if (chunk.seq_id, chunk.attempt) not in self._begun:
                self._begun.add((chunk.seq_id, chunk.attempt))
                self.num_saved += max(0, chunk.start - sequence.num_computed)

    def _waiting(self) -> list[Running]:
        return [sequence for sequence in self.sequences if not sequence.running and not sequence.finished]

    def _fills(self, waiting: list[Running]) -> bool:
        """Whether a batch of these is to wait: it is not full, none has waited too long, none has begun."""
        begun = any(sequence.num_preemptions for sequence in waiting)
        size = min(self.limits.max_num_seqs, self.config.shape.num_rows)
        late = any(self.now - sequence.request.arrival >= BATCH_WAIT for sequence in waiting)
        return 0 < len(waiting) < size and not begun and not late

    def _apply(self, plan: StepPlan, handle) -> None:
        progress, record = self.scheduler.apply(plan, self.runner.collect(handle)[0])
        check_record(record, progress)
        self.records.append(record)
        assert len(self.records) < MAX_STEPS, "it does not end"
        for sequence, _ in progress:
            if sequence.finished:
                self._note_end(sequence)
            elif self.stops(sequence):
                self.end(sequence, FinishReason.STOP, HOST_STOP)

    def _check_padded(self, plan: StepPlan) -> None:
        """A padded batch decodes the same rows from its first step to its last."""
        if self.config.admission.hold_finished:
            if plan.seq_ids and self._padded_batch:
                assert plan.seq_ids == self._padded_batch
            self._padded_batch = plan.seq_ids

    def _count_shared(self, plan: StepPlan) -> None:
        """Positions that count as useful where each sequence is alone, and that it has from others."""
        for chunk in plan.chunks:
            covered = self._covered.get(chunk.seq_id, 0)
            self.num_shared += max(0, chunk.start - covered)
            useful = len(chunk.token_ids) - chunk.num_recomputed
            self.num_shared += max(0, chunk.end - max(chunk.start, covered)) - useful
            self._covered[chunk.seq_id] = max(covered, chunk.end)
            for draw in chunk.draws[1:]:
                covered = self._covered.get(draw.seq_id, 0)
                self.num_shared += chunk.end - covered
                self._covered[draw.seq_id] = chunk.end

    def drain(self) -> None:
        """Step until idle."""
        while self.scheduler.has_unfinished or self.in_flight:
            self.step()

    def check_end(self) -> None:
        """Once drained: every sequence ended once with its tokens, in a bounded number of steps."""
        assert self.ends.keys() == {sequence.seq_id for sequence in self.sequences}
        most_steps = positions = 0
        untouched = True
        for sequence in self.sequences:
            self._note_end(sequence)
            untouched &= check_tokens(sequence)
            positions += sequence.num_known
            positions -= sequence.request.max_tokens > 0  # what is drawn last is never cached
            whole_pages = self.smallest_budget - self.smallest_budget % self.config.shape.page_size
            chunks = -(-sequence.max_len // (whole_pages or self.smallest_budget))
            given = len(sequence.output_token_ids) + self.depth  # and what is in flight at its end
            most_steps += chunks * (1 + sequence.num_preemptions) + given
        assert len(self.records) <= most_steps, "steps without progress"
        useful = sum(record.useful for record in self.records)
        positions -= self.num_shared
        assert useful == positions if untouched else useful <= positions + len(self.sequences)
        found, reachable, looked_up = (
            sum(getattr(record, name) for record in self.records) for name in FINDS
        )
        assert self.num_saved <= found <= reachable <= looked_up
        preempted = sum(record.num_preempted for record in self.records) + len(self.scheduler._preempted)
        assert preempted == sum(sequence.num_preemptions for sequence in self.sequences)
        assert self.config.reserve != "no-evict" or preempted <= self.num_retracted


def check_tokens(sequence: Running) -> bool:
    """It has the tokens that the definition gives and the right reason. False where the host ended it."""
    asked, got = sequence.request, sequence.output_token_ids
    expected = continuation(
        asked.prompt_token_ids,
        asked.max_tokens,
        VOCAB_SIZE,
        asked.stop_ids,
        asked.params.min_tokens,
        asked.sample_idx,
    )
    if sequence.finish_reason == FinishReason.ABORT or sequence.stop_reason == HOST_STOP:
        assert got == expected[: len(got)]
        return False
    assert got == expected
    if expected and expected[-1] in asked.stop_ids:
        assert (sequence.finish_reason, sequence.stop_reason) == (FinishReason.STOP, expected[-1])
    else:
        assert (sequence.finish_reason, sequence.stop_reason) == (FinishReason.LENGTH, None)
    return True


# At random.


def random_config(rng: random.Random, mode: str, policy: str) -> SchedulerConfig:
    num_rows = rng.choice((1, 2, 4, 6, 8))
    page_size = rng.choice((2, 2, 4, 16))  # smaller than any device's, so that more happens
    tokens = rng.choice([size for size in (8, 16, 32, 64) if size >= page_size])
    max_model_len = rng.choice((32, 64))
    fewest = 2 if page_size == 16 else 5
    slots, steps = sorted({1, -(-num_rows // 2), num_rows}), rng.choice((1, 2, 4, 7))
    several = tuple(Bucket(size, 0, steps) for size in slots) if steps > 1 else ()
    return scheduler_config(
        mode,
        policy,
        num_rows=num_rows,
        num_pages=rng.randint(fewest, 2 + 3 * max_model_len // (2 * page_size)),
        page_size=page_size,
        max_model_len=max_model_len,
        buckets=(*buckets(sorted({8, tokens}), slots, mode), *several),
        enable_prefix_caching=rng.random() < 0.5,
    )


def random_prompt(rng: random.Random, length: int, stem: Sequence[int]) -> list[int]:
    """Its first tokens are often those of a stem that others have, too."""
    shared = list(stem)[: rng.choice((0, rng.randint(0, length), length))]
    return shared + rng.choices(range(VOCAB_SIZE), k=length - len(shared))


def random_request(rng: random.Random, room: int, stem: Sequence[int] = ()) -> Request:
    salt = rng.choice((None, None, None, "a"))
    if rng.random() < 0.03:  # scores its prompt, and draws nothing
        prompt = random_prompt(rng, rng.randint(1, room), stem)
        return request(prompt, 0, prompt_logprobs=0, arrival=float(rng.randrange(4)))
    prompt_len = rng.randint(1, max(1, int((room - 1) * rng.choice((0.1, 0.3, 1)))))
    max_tokens = rng.randint(1, room - prompt_len)
    return request(
        random_prompt(rng, prompt_len, stem),
        max_tokens,
        tuple(rng.sample(range(VOCAB_SIZE), rng.choice((0, 0, 0, 1, 8)))),
        min_tokens=rng.choice((0, min(3, max_tokens))),
        temperature=rng.choice((0.0, 0.0, 1.0)),
        arrival=float(rng.randrange(4)),
        priority=rng.randrange(3),
        predicted_len=rng.choice((None, rng.randrange(32))),
        cache_salt=salt,
        **random_wishes(random.Random(max_tokens + prompt_len)),
    )


def random_wishes(rng: random.Random) -> dict[str, Any]:
    """What some policies go by."""
    return {
        "deadline": rng.choice((None, None, float(rng.randrange(9)))),
        "user": rng.choice((None, "a", "b")),
        "limits": rng.choice((LatencyLimits(), LatencyLimits(e2el_ms=rng.randrange(9000)))),
    }


def random_limits(rng: random.Random, shape: StateShape) -> Callable[[SchedulerView], StepLimits] | None:
    """None, constant ones, or ones that change from step to step."""
    kind = rng.randrange(4)
    if kind < 2:
        return None
    tokens = rng.choices((shape.page_size, shape.page_size + 3, max(8, shape.page_size), 20, 64), k=kind - 1)
    company = Company(rng.choice((0, 8, 32)), rng.randint(0, 3))
    return lambda view: StepLimits(rng.choice(tokens), rng.randint(1, shape.num_rows), company)


def run_random_schedule(seed: int) -> Driver:
    """Arrivals, aborts and stop strings at random; every sequence ends once, with exactly its tokens."""
    rng, holder = random.Random(seed), random.Random(seed)
    mode = rng.choice(("continuous",) * 4 + tuple(MODES))
    config = random_config(rng, mode, list(POLICIES)[seed % len(POLICIES)])
    config = config._replace(reserve=RESERVES[seed % len(RESERVES)], max_preemption_probability=0.2)
    abort_share, stop_share = rng.choice(((0, 0), (0, 0), (0.02, 0), (0.05, 0.02), (0.2, 0.1)))
    driver = Driver(
        config,
        depth=rng.randint(0, 2),
        limits=random_limits(rng, config.shape),
        stops=lambda sequence: rng.random() < stop_share,
    )
    room = driver.scheduler.max_seq_len
    stem, forget_share = rng.choices(range(VOCAB_SIZE), k=room), rng.choice((0, 0, 0.02))
    update_share = rng.choice((0, 0, 0, 0.05))
    samples = rng.choice(((1,), (1, 1, 2, 3), (1, 1, 1, 9)))
    num_requests, arrival_share = rng.randint(1, 16), rng.choice((0.1, 0.5, 0.9))
    while len(driver.sequences) < num_requests or driver.scheduler.has_unfinished or driver.in_flight:
        if len(driver.sequences) < num_requests and rng.random() < arrival_share:
            driver.submit(random_request(rng, room, stem), n=rng.choice(samples))
        elif driver.sequences and rng.random() < abort_share:
            driver.end(rng.choice(driver.sequences), FinishReason.ABORT)
        elif rng.random() < forget_share:
            driver.scheduler.weights_changed()
        if rng.random() < update_share:
            driver.update()
        driver.hold(holder)
        driver.step()
    driver.check_end()
    return driver


def run_seeds(seeds: range) -> tuple[Counter, dict[int, str]]:
    """Totals over schedules, and the error of the first seed that fails (for a process of its own)."""
    totals: Counter = Counter()
    for seed in seeds:
        try:
            driver = run_random_schedule(seed)
        except Exception:
            return totals, {seed: traceback.format_exc()}
        totals += count(driver)
    return totals, {}


def count(driver: Driver) -> Counter:
    """What happened in a schedule."""
    admission, policy = driver.config.admission, driver.config.policy
    mode = next(name for name in MODES if MODES[name] == admission)
    ends = Counter(HOST_STOP if stop == HOST_STOP else str(why) for why, stop, _ in driver.ends.values())
    names = "num_preempted", "recomputed", "wasted", "output_tokens", "found"
    sums = {name: sum(getattr(record, name) for record in driver.records) for name in names}
    kinds = {
        "several steps": sum(record.num_decode_steps > 1 for record in driver.records),
        "shared": driver.num_shared,
        "mixed": sum(record.kind == "mixed" for record in driver.records),
        mode: 1,
        policy.name: 1,
        f"depth {driver.depth}": 1,
        "updates": driver.runner.num_updates,
        "held": driver.num_held,
    }
    return ends + Counter({"steps": len(driver.records), **sums, **kinds})
