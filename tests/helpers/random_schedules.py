"""Random schedules: a scheduler on a fake device, driven by a seed, checked after every step."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jbatch.host.config import SchedulerConfig
from jbatch.host.limits import Company, SchedulerView, StepLimits
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.host.request import LatencyLimits, Request
from jbatch.outputs import FinishReason
from jbatch.seam.bucket import Bucket
from jbatch.seam.shape import StateShape
from tests.helpers.driver import HOST_STOP, Driver
from tests.helpers.schedules import VOCAB_SIZE, buckets, request, scheduler_config

RESERVES = ("optimistic", "optimistic", "optimistic", "forecast", "no-evict")


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
