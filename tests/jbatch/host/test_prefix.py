"""Digests of pages, by hand; and what a scheduler publishes, finds and forgets. At random: tests/property."""

import hashlib
import struct

import numpy as np
import pytest

from jbatch.errors import ConfigError, UserFunctionError
from jbatch.host.limits import StepLimits
from jbatch.host.prefix import PrefixIndex, extend_digests
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.sampling_params import SamplingParams
from jbatch.seam import bucket as bucket_module
from jbatch.seam.step_output import Status, StepOutput, num_draws
from tests.helpers.driver import Driver
from tests.helpers.schedules import buckets, request, scheduler_config

# Digests.


def digests_of(token_ids, root=b"root", page_size=4):
    digests = []
    extend_digests(digests, root, token_ids, page_size)
    return digests


def test_a_digest_is_of_its_parent_and_of_a_pages_tokens():
    tokens = [5, 2**31 - 1, 0, 7, 1, 2, 3, 4, 9]
    first = hashlib.sha256(b"root" + struct.pack("<4i", *tokens[:4])).digest()
    second = hashlib.sha256(first + struct.pack("<4i", *tokens[4:8])).digest()
    assert digests_of(tokens) == [first, second]


def test_digests_are_the_same_however_they_are_made():
    tokens = list(range(40))
    some = digests_of(tokens[:13])
    extend_digests(some, b"root", tokens, 4)
    assert some == digests_of(tuple(tokens)) and len(some) == 10


def test_equal_pages_at_other_places_have_other_digests():
    assert len(set(digests_of([1, 2, 3, 4] * 5))) == 5
    assert digests_of([1, 2, 3, 4]) != digests_of([1, 2, 3, 4], root=b"other")


def test_a_root_is_of_the_salt_and_of_what_made_pages_stale():
    index = PrefixIndex(4)
    before = {index.root(salt) for salt in (None, "a", "b", "0")}
    index.forget_all()
    assert len(before | {index.root(salt) for salt in (None, "a", "b", "0")}) == 8


def test_half_a_character_is_a_salt_as_any_text():
    index = PrefixIndex(4)
    assert len({index.root(salt) for salt in ("\ud800", "\ud801", "?")}) == 3


def test_the_longest_beginning_is_found():
    index = PrefixIndex(6)
    one, two, three = digests_of(range(12))
    index.publish(one, 5)
    index.publish(three, 2)
    assert index.find([one, two, three]) == [5]
    index.publish(two, 1)
    assert index.find([one, two, three]) == [5, 1, 2]
    index.drop(5)
    assert index.find([one, two, three]) == [] and len(index) == 2


def test_a_page_has_one_digest_and_a_digest_one_page():
    index = PrefixIndex(4)
    index.publish(b"x", 1)
    index.publish(b"x", 2)
    index.publish(b"y", 1)
    assert (index.find([b"x"]), index.find([b"y"]), index.holds(2)) == ([1], [], False)
    index.drop_digests([b"x", b"unknown"])
    assert len(index) == 0 and not index.holds(1)


# A scheduler. Pages have four tokens.


def driver_of(depth=0, **changes):
    limits = changes.pop("limits", None)
    return Driver(scheduler_config(**{"page_size": 4, "num_pages": 17, **changes}), depth, limits)


def run(driver, *requests):
    """How many tokens each found; one after the other has ended."""
    found = []
    for each in requests:
        sequence = driver.submit(each)
        driver.drain()
        found.append(sequence.num_found)
    driver.check_end()
    return found


TOKENS = tuple(range(1, 13))


@pytest.mark.parametrize("length, found", [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8)])
def test_whole_pages_are_found_and_the_last_token_is_computed(length, found):
    """Of a prompt of exactly full pages the last one is computed again."""
    assert run(driver_of(), request(TOKENS, 1), request(TOKENS[:length], 2)) == [0, found]


def test_what_was_generated_is_found_too():
    driver = driver_of()
    first = driver.submit(request(TOKENS[:6], 7))
    driver.drain()
    assert run(driver, request([*first.token_ids, 5], 1)) == [12]


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("max_tokens", [1, 3])
def test_one_that_left_before_its_step_landed_is_found(depth, max_tokens):
    """Its row and pages are others' as soon as its last token is planned."""
    driver = driver_of(depth)
    assert run(driver, request(TOKENS, max_tokens), request(TOKENS, 1)) == [0, 8]


def test_pages_of_one_that_left_which_another_took_meanwhile_are_not_found():
    """Four pages: b takes all of them while a's step is under way."""
    driver = driver_of(depth=2, num_pages=5, num_rows=1)
    driver.submit(request(TOKENS, 1))
    b = driver.submit(request([50 + i for i in range(14)], 1))
    driver.drain()
    assert b.num_found == 0
    assert run(driver, request(TOKENS, 1), request([50 + i for i in range(9)], 1)) == [0, 4]


def test_nothing_is_found_before_its_step_has_landed():
    """Two steps ahead: b and c begin while a's is under way, d once it has landed."""
    driver = driver_of(depth=2)
    sequences = [driver.submit(request(TOKENS, 4))]
    for _ in range(4):
        driver.step()
        sequences.append(driver.submit(request(TOKENS, 4)))
    driver.drain()
    assert [sequence.num_found for sequence in sequences] == [0, 0, 0, 8, 8]
    driver.check_end()


def test_other_tokens_before_it_another_salt_and_no_salt_find_nothing():
    shifted = (0, *TOKENS)
    salted = [request(TOKENS, 1, cache_salt=salt) for salt in ("a", "b", None, "a")]
    assert run(driver_of(), request(shifted, 1), *salted) == [0, 0, 0, 0, 8]


@pytest.mark.parametrize("reading", [True, False, None])
def test_a_request_may_skip_reading_and_others_find_what_it_computed(reading):
    def asked():
        one = request(TOKENS, 1)
        params = SamplingParams(temperature=0.0, skip_reading_prefix_cache=reading)
        return type(one)(**{f: getattr(one, f) for f in one.__slots__} | {"params": params})

    assert run(driver_of(), asked(), asked(), request(TOKENS, 1)) == [0, 0 if reading else 8, 8]


def test_a_prompt_that_is_scored_is_computed_as_a_whole():
    scored = request(TOKENS, 1, prompt_logprobs=0)
    assert run(driver_of(), request(TOKENS, 1), scored) == [0, 0]


def test_without_the_cache_nothing_is_found():
    assert run(driver_of(enable_prefix_caching=False), *[request(TOKENS, 1)] * 2) == [0, 0]


def test_the_least_recently_freed_go_first_and_of_a_sequence_its_tail():
    """Six pages: a's three, then b's three. Each further page takes one of a's, from its end."""
    driver = driver_of(num_pages=7)
    other = [50 + token for token in TOKENS]
    run(driver, request(TOKENS, 1), request(other, 1))
    index = driver.scheduler.holdings.prefixes
    assert len(index) == 6
    run(driver, request([90, 91, 92, 93], 1), request([90, 91, 92, 94], 1))
    assert run(driver, request(TOKENS, 1)) == [4]


def test_pages_that_are_gone_by_the_time_of_admission_are_not_found():
    """One row and four pages: while c waits, b takes the pages that c would have found."""
    driver = driver_of(num_pages=5, num_rows=1)
    run(driver, request(TOKENS, 1))
    driver.submit(request([50 + i for i in range(14)], 1))
    c = driver.submit(request(TOKENS, 1))
    driver.drain()
    assert c.num_found == 0
    driver.check_end()


def test_found_pages_that_are_free_are_not_counted_twice():
    """Four pages of 4 tokens, three of them free and found. b of 16 needs but the fourth."""
    driver = driver_of(num_pages=5)
    run(driver, request(TOKENS, 1))
    b = driver.submit(request((*TOKENS, 13), 3))
    driver.drain()
    assert b.num_found == 12
    driver.check_end()


def test_pages_of_running_sequences_are_shared_and_counted_once():
    """a holds four pages of four. b shares three, and needs but one of its own."""
    driver = driver_of(num_pages=7, depth=0)
    a = driver.submit(request((*TOKENS, 13), 3))
    driver.step()
    b = driver.submit(request((*TOKENS, 14), 2))
    driver.step()
    assert a.running and b.running and b.pages[:3] == a.pages[:3] and b.pages[3] != a.pages[3]
    assert driver.scheduler.pool.num_used == 5
    driver.end(a, FinishReason.ABORT)
    driver.drain()
    driver.check_end()


def test_a_preempted_sequence_finds_its_own_pages_with_its_output():
    """Four pages of 4 tokens: a grows to all of them, b is preempted with two, and its first one survives."""
    driver = driver_of(num_rows=2, num_pages=5)
    driver.submit(request([60, 61, 62, 63], 9))
    b = driver.submit(request([70, 71, 72, 73], 8))
    driver.drain()
    driver.check_end()
    assert b.num_preemptions == 1 and b.num_found == 0
    assert 0 < sum(record.found for record in driver.records) <= 8
    assert sum(record.recomputed for record in driver.records) < 8


def test_a_step_has_room_for_so_many_found_pages(monkeypatch):
    """For three. Of five that are there, a takes three; b waits for the next step."""
    monkeypatch.setattr("jbatch.host.holdings.PREFIX_PAGES", 3)
    monkeypatch.setattr("jbatch.host.admission.PREFIX_PAGES", 3)
    driver = driver_of(num_pages=33)
    tokens = tuple(range(21))
    run(driver, request(tokens, 1))
    a, b = driver.submit(request(tokens, 2)), driver.submit(request(tokens, 2))
    driver.step()
    assert (a.num_found, b.running) == (12, False)
    driver.drain()
    driver.check_end()
    assert b.num_found == 12
    assert bucket_module.PREFIX_PAGES == 512


def test_weights_that_changed_leave_nothing_to_be_found():
    """What runs goes on, and publishes nothing; what is under way lands, and is not found."""
    driver = driver_of(depth=1)
    run(driver, request(TOKENS, 1))
    running = driver.submit(request([30 + token for token in TOKENS], 20))
    driver.step()
    driver.scheduler.weights_changed()
    driver.drain()
    assert len(driver.scheduler.holdings.prefixes) == 0
    assert run(driver, request(TOKENS, 1), request(running.token_ids, 1), request(TOKENS, 1)) == [0, 0, 8]


def test_a_reset_is_refused_while_pages_are_held():
    driver = driver_of()
    driver.submit(request(TOKENS, 3))
    driver.step()
    assert not driver.scheduler.reset_prefix_cache()
    driver.drain()
    assert len(driver.scheduler.holdings.prefixes) == 3
    assert driver.scheduler.reset_prefix_cache()
    assert run(driver, request(TOKENS, 1)) == [0]


def test_a_scheduler_that_begins_anew_knows_no_pages():
    driver = driver_of()
    run(driver, request(TOKENS, 1))
    assert len(driver.scheduler.renewed("an error").holdings.prefixes) == 0


# Results that are not what they should be.


def land(scheduler, plan, status):
    draws = num_draws(plan.bucket, scheduler.config.shape)
    output = StepOutput(
        np.full((draws, 1), 7), np.full(draws, int(status == Status.RUNNING)), np.full(draws, status)
    )
    scheduler.apply(plan, output)


@pytest.mark.parametrize(
    "status, num", [(Status.RUNNING, 3), (Status.NOTHING_LEFT, 3), (Status.NON_FINITE, 0)]
)
def test_pages_of_logits_that_are_not_finite_are_not_found(status, num):
    """Nor those that the same prompt's first chunks filled."""
    scheduler = Scheduler(scheduler_config(page_size=4), lambda view: StepLimits(8, 4))
    scheduler.add(request(TOKENS, 2))
    land(scheduler, scheduler.schedule(0.0), Status.RUNNING)
    assert len(scheduler.holdings.prefixes) == 2
    land(scheduler, scheduler.schedule(0.0), status)
    assert len(scheduler.holdings.prefixes) == num


def test_a_decoded_token_that_is_not_finite_takes_its_pages_out():
    scheduler = Scheduler(scheduler_config(page_size=4))
    scheduler.add(request(TOKENS, 5))
    land(scheduler, scheduler.schedule(0.0), Status.RUNNING)
    land(scheduler, scheduler.schedule(0.0), Status.NON_FINITE)
    assert len(scheduler.holdings.prefixes) == 0 and not scheduler.has_unfinished


# Budgets.


def test_a_step_must_hold_a_page_of_prompt_tokens():
    with pytest.raises(ConfigError, match=r"token_buckets=16: must be an integer from 32 .*a page"):
        Scheduler(scheduler_config(page_size=32, buckets=buckets((16,), (1, 2, 4))))
    Scheduler(scheduler_config(page_size=32, max_model_len=16, buckets=buckets((16,), (1, 2, 4))))


@pytest.mark.parametrize("tokens", [1, 15])
def test_a_users_budget_of_less_than_a_page_is_refused_by_name(tokens):
    scheduler = Scheduler(scheduler_config(), lambda view: StepLimits(tokens, 4))
    scheduler.add(request(TOKENS, 1))
    with pytest.raises(UserFunctionError, match=f"tokens={tokens}: must be 0, or at least 16"):
        scheduler.schedule(0.0)


def test_a_few_prompt_tokens_never_shrink_a_step_below_a_page():
    """20 tokens wait: 16 would fill the smaller step, in which a prompt of less than a page cannot begin."""
    config = scheduler_config(page_size=32, num_pages=9, buckets=buckets((16, 32, 64), (1, 2, 4)))
    driver = Driver(config, depth=0)
    driver.submit(request(TOKENS, 20))
    driver.step()
    waiting = driver.submit(request(range(40, 60), 2))
    driver.step()
    assert waiting.running and waiting.num_cached_planned == 20
    driver.drain()
    driver.check_end()
