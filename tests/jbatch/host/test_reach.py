"""What is compiled for a batch before its first step: never less than its steps need, and little more."""

import random

import pytest

from jbatch.host.limits import StepLimits
from jbatch.host.policy import MODES
from jbatch.host.reach import Reach, reach
from jbatch.outputs import FinishReason
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket, decode_bucket, prefill_bucket
from tests.helpers.driver import Driver
from tests.helpers.schedules import buckets, request, scheduler_config
from tests.helpers.sizes import sized

TOKENS, SLOTS = (16, 32, 64), (1, 2, 4)


def config(mode="continuous", num_pages=65, **changes):
    return scheduler_config(mode, num_pages=num_pages, **{"buckets": buckets(TOKENS, SLOTS, mode), **changes})


def reach_of(*requests, limits=None, **changes):
    driver = Driver(config(**changes), limits=limits)
    for each in requests:
        driver.submit(each)
    return reach(driver.scheduler)


def prompts(*lengths, max_tokens=5, **options):
    return [request([7] * length, max_tokens, **options) for length in lengths]


def random_driver(rng: random.Random) -> Driver:
    """Any mode, any few sizes, a pool that holds all or little of it."""
    mode = rng.choice(list(MODES))
    slots = tuple(sorted({*rng.sample((1, 2, 3), rng.randint(0, 2)), 4}))
    tokens = tuple(sorted(rng.sample(TOKENS, rng.randint(1, 3))))
    sizes = buckets(tokens, slots, mode)
    if len(slots) > 1 and rng.random() < 0.3:
        sizes += tuple(Bucket(size, 0, 3) for size in slots)
    limits = StepLimits(rng.choice((tokens[-1], rng.randint(16, tokens[-1]))), rng.randint(1, 4))
    num_pages = rng.choice((9, 12, 65))
    stops = rng.random() < 0.3
    return Driver(
        config(mode, num_pages, buckets=sizes),
        depth=rng.randint(0, 2),
        limits=lambda view: limits,
        stops=lambda sequence: stops and rng.random() < 0.1,
    )


@pytest.mark.parametrize("seed", range(sized(150, 5000)))
def test_no_step_needs_more(seed):
    """Whatever ends early, is aborted, or loses its pages."""
    rng = random.Random(seed)
    driver = random_driver(rng)
    for _ in range(rng.choice((1, 2, rng.randint(1, 12)))):
        driver.submit(
            request(
                [rng.randrange(97) for _ in range(rng.randint(1, rng.choice((8, 30, 60))))],
                rng.choice((1, rng.randint(1, 60))),
                temperature=rng.choice((0.0, 1.0)),
                top_p=rng.choice((1.0, 0.5)),
                stop_ids=tuple(rng.sample(range(97), 9)) if rng.random() < 0.5 else (),
            ),
            n=rng.choice((1, 1, 2, 4)),
        )
    found = reach(driver.scheduler)
    while driver.scheduler.has_unfinished or driver.in_flight:
        if (plan := driver.step()) is not None:
            assert plan.bucket in found.buckets and plan.sampler in found.samplers
        if rng.random() < 0.05:
            driver.end(rng.choice(driver.sequences), FinishReason.ABORT)


def test_nobody_waits():
    assert reach_of() == Reach((), ())


@pytest.mark.parametrize("length, tokens", [(1, 16), (16, 16), (17, 32), (60, 64)])
@pytest.mark.parametrize("mode", MODES)
def test_one_prompt_takes_one_step_of_prompts_and_one_of_decoding(mode, length, tokens):
    found = reach_of(*prompts(length), mode=mode)
    with_prompts = Bucket(4, tokens) if MODES[mode].refill else prefill_bucket(tokens)
    assert set(found.buckets) == {with_prompts, decode_bucket(1)}
    assert found.samplers == (Sampler.GREEDY,)


def test_a_few_prompts_that_fit_one_step():
    """Chunks are aligned, and each takes a place for its first page."""
    assert set(reach_of(*prompts(8, 8, 8)).buckets) == {Bucket(4, 64), *map(decode_bucket, SLOTS)}
    assert set(reach_of(*prompts(8)).buckets) == {Bucket(4, 16), decode_bucket(1)}


def test_prompts_that_take_several_steps():
    every = {*(Bucket(4, size) for size in TOKENS), *map(decode_bucket, SLOTS)}
    assert set(reach_of(*prompts(60, 60)).buckets) == every - {decode_bucket(4)}
    assert set(reach_of(*prompts(*[9] * 5)).buckets) == every
    assert set(reach_of(*prompts(100)).buckets) == every - {decode_bucket(2), decode_bucket(4)}


def test_a_small_pool_may_take_pages_away():
    """Then a prompt is prefilled again with its output, in whichever size that fills."""
    few = prompts(8, 8, max_tokens=30)
    assert set(reach_of(*few).buckets) == {Bucket(4, 32), *map(decode_bucket, (1, 2))}
    assert {Bucket(4, size) for size in TOKENS} < set(reach_of(*few, num_pages=6).buckets)


def test_more_prompts_than_run_at_once_need_no_more_than_those():
    found = reach_of(*prompts(*[8] * 9, max_tokens=2), buckets=buckets((16, 64, 128, 256), SLOTS), num_rows=4)
    assert [bucket.tokens for bucket in found.buckets if bucket.tokens] == [16, 64]


def test_more_chunks_than_a_step_takes():
    """The third of them comes in a step of its own."""
    found = reach_of(*prompts(8, 8, 8), buckets=buckets((16, 32), SLOTS))
    assert {Bucket(4, 16), Bucket(4, 32)} < set(found.buckets)


def test_what_only_scores_never_decodes():
    scored = prompts(8, max_tokens=0, prompt_logprobs=1)
    assert reach_of(*scored) == Reach((Bucket(4, 16),), (Sampler.LOGPROBS,))
    assert set(reach_of(*prompts(8, 8, max_tokens=1)).buckets) == {Bucket(4, 32)}


def test_samples_of_a_prompt_take_one_chunk_and_as_many_draws():
    """Four draws take a step of 64 tokens; four prompts of 8 tokens would, too."""
    driver = Driver(config())
    driver.submit(*prompts(8), n=4)
    found = reach(driver.scheduler)
    assert set(found.buckets) == {Bucket(4, 64), *map(decode_bucket, SLOTS)} and found.shares_pages
    driver = Driver(config(buckets=buckets((16, 128, 256), SLOTS)))
    driver.submit(*prompts(60), n=4)
    assert set(reach(driver.scheduler).buckets) == {Bucket(4, 128), *map(decode_bucket, SLOTS)}


def test_variants_and_their_unions():
    found = reach_of(*prompts(8), *prompts(8, temperature=1.0), *prompts(8, temperature=1.0, top_p=0.5))
    assert found.samplers == (Sampler.GREEDY, Sampler.PLAIN, Sampler.FILTERED)


def test_one_bucket_of_each_kind_is_one_program():
    sizes = buckets((64,), (4,))
    assert reach_of(*prompts(8), buckets=sizes).buckets == sizes == (Bucket(4, 64),)
