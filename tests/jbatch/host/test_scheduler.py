"""The scheduler by hand: exact plans of small scenarios. At random: tests/property."""

import dataclasses
import random

import pytest

from jbatch.errors import RequestError
from jbatch.host.limits import StepLimits
from jbatch.host.metrics import summarise
from jbatch.host.plan import TableUpdate
from jbatch.host.policy import MODES
from jbatch.host.scheduler import Scheduler
from jbatch.sampler import Sampler
from jbatch.sampling_params import SamplingParams
from tests.helpers.driver import Driver
from tests.helpers.plans import lines, plans_until_idle, submit
from tests.helpers.schedules import request, scheduler_config

# Requests that can never run are refused at once.


@pytest.mark.parametrize(
    "num_pages, room, limit", [(17, 128, "128 (max_model_len)"), (4, 48, "48 (the page pool's tokens)")]
)
def test_the_context_and_the_pool_bound_prompt_and_output(num_pages, room, limit):
    driver = Driver(scheduler_config(num_pages=num_pages))
    assert driver.scheduler.max_seq_len == room
    for prompt_len in (1, 30, room - 1):
        accepted = submit(driver, prompt_len, room - prompt_len)
        with pytest.raises(RequestError) as error:
            submit(driver, prompt_len, room - prompt_len + 1)
        assert (error.value.field, error.value.value) == ("prompt_token_ids + max_tokens", room + 1)
        assert error.value.code == "context_length" and limit in str(error.value)
        driver.drain()
        assert len(accepted.output_token_ids) == room - prompt_len
    driver.check_end()


def test_an_empty_prompt_is_refused():
    with pytest.raises(RequestError, match="prompt_token_ids=") as error:
        Scheduler(scheduler_config()).add(request([], 5))
    assert error.value.code == "empty_prompt"


def test_a_sequence_draws_at_least_one_token():
    """With a budget of none the device would count past zero, and never end it."""
    driver = Driver(scheduler_config())
    with pytest.raises(RequestError, match="max_tokens=0: must be at least 1"):
        submit(driver, 3, 0)


# Three requests on two rows: every plan of every mode. b ends two tokens before a.

PLANS = {
    "continuous": """
        prefill 32: a[0:5]! b[0:20]!
        decode 2: a b
        mixed 32: a c[0:3]!
        decode 2: a c
        decode 2: a c
    """,
    "static": """
        prefill 32: a[0:5]! b[0:20]!
        decode 2: a b
        decode 1: a
        decode 1: a
        decode 1: a
        prefill 32: c[0:3]!
        decode 1: c
        decode 1: c
    """,
    "static-full": """
        prefill 32: a[0:5]! b[0:20]!
        decode 2: a b
        decode 1: a
        decode 1: a
        decode 1: a
        prefill 32: c[0:3]!
        decode 1: c
        decode 1: c
    """,
    "static-padded": """
        prefill 32: a[0:5]! b[0:20]!
        decode 2: a b
        decode 2: a (b)
        decode 2: a (b)
        decode 2: a (b)
        prefill 32: c[0:3]!
        decode 1: c
        decode 1: c
    """,
    "unbatched": """
        prefill 32: a[0:5]!
        decode 1: a
        decode 1: a
        decode 1: a
        decode 1: a
        prefill 32: b[0:20]!
        decode 1: b
        prefill 32: c[0:3]!
        decode 1: c
        decode 1: c
    """,
}


@pytest.mark.parametrize("mode", MODES)
def test_plans(mode):
    driver = Driver(scheduler_config(mode, num_rows=2))
    for prompt_len, max_tokens in ((5, 5), (20, 2), (3, 3)):
        submit(driver, prompt_len, max_tokens)
    assert plans_until_idle(driver) == lines(PLANS[mode])


def test_the_first_two_plans_and_their_accounts():
    """Page ids, table entries and every figure of the records, for the table above."""
    driver = Driver(scheduler_config(num_rows=2), depth=0)
    submit(driver, 16, 5)
    submit(driver, 7, 2)
    prefill, decode = driver.step(), driver.step()
    assert (prefill.step_idx, prefill.seq_ids, prefill.rows, prefill.sampler) == (0, (), (), Sampler.GREEDY)
    assert [(c.seq_id, c.row, c.num_recomputed) for c in prefill.chunks] == [(0, 0, 0), (1, 1, 0)]
    draws = [draw for chunk in prefill.chunks for draw in chunk.draws]
    assert [(d.seq_id, d.row, d.offset) for d in draws] == [(0, 0, 15), (1, 1, 6)]
    assert prefill.table_updates == (TableUpdate(0, 0, 1), TableUpdate(1, 0, 2))
    assert (decode.step_idx, decode.seq_ids, decode.rows) == (1, (0, 1), (0, 1))
    assert decode.table_updates == (TableUpdate(0, 1, 3),)  # a's 17th token needs a second page

    first, second = driver.records
    assert (first.slots, first.slots_used, first.tokens, first.computed) == (4, 0, 32, 36)
    assert (first.useful, first.padded, first.wasted, first.recomputed) == (23, 13, 0, 0)
    assert (first.output_tokens, first.pages_used, first.num_running, first.num_waiting) == (2, 2, 2, 0)
    assert (second.slots, second.slots_used, second.tokens, second.computed) == (2, 2, 0, 2)
    assert (second.useful, second.padded, second.wasted, second.recomputed) == (2, 0, 0, 0)
    # b gave its row and page as soon as its last token was planned.
    assert (second.output_tokens, second.pages_used, second.num_running, second.num_waiting) == (2, 2, 1, 0)


def test_limits_see_the_state_and_bound_what_runs():
    views = []

    def limits(view):
        views.append(view)
        return StepLimits(64, 1)

    driver = Driver(scheduler_config(), depth=0, limits=limits)
    submit(driver, 5, 2)
    submit(driver, 5, 1)
    assert plans_until_idle(driver) == [
        "prefill 32: a[0:5]!", "decode 1: a", "prefill 32: b[0:5]!",
    ]  # fmt: skip
    assert [view[:4] for view in views] == [(1.0, 2, 0, 16), (2.0, 1, 1, 15), (3.0, 1, 0, 16)]


# Modes, compared.


@pytest.mark.parametrize("seed", range(3))
def test_modes_cost_what_is_expected(seed):
    """64 requests of mixed lengths on 4 rows: the same tokens, in different numbers of steps and slots."""
    totals = {}
    for mode in MODES:
        rng, driver = random.Random(seed), Driver(scheduler_config(mode))
        for _ in range(64):
            submit(driver, rng.randint(1, 16), rng.randint(1, 48))
        driver.drain()
        driver.check_end()
        totals[mode] = summarise(driver.records)
    continuous, static, full, padded, unbatched = (totals[mode] for mode in MODES)
    assert full == static, "all are there from the beginning"
    assert unbatched.decode_steps > static.decode_steps == padded.decode_steps > continuous.decode_steps
    assert padded.slot_steps > static.slot_steps >= continuous.slot_steps >= unbatched.slot_steps
    assert unbatched.slot_use == 1 and continuous.slot_use > 0.9 and padded.slot_use < 0.7
    useful = {(s.output_tokens, s.useful_slot_steps, s.useful_prefill_tokens) for s in totals.values()}
    assert len(useful) == 1
    assert all(s.recomputed == s.num_preempted == 0 for s in totals.values())


# What the step's program must know.


def test_a_plan_names_the_least_sampler_that_serves_all_running_sequences():
    driver = Driver(scheduler_config(), depth=0)
    submit(driver, 2, 4)
    submit(driver, 2, 3, temperature=0.5)
    submit(driver, 2, 2, temperature=0.5, top_p=0.9)
    samplers = [driver.step().sampler for _ in range(4)]
    assert samplers == [Sampler.FILTERED, Sampler.FILTERED, Sampler.PLAIN, Sampler.GREEDY]


def test_one_that_reports_and_one_that_changes_logits_take_a_program_of_both():
    driver = Driver(scheduler_config(), depth=0)
    for max_tokens, params in ((3, {"logprobs": 0}), (2, {"presence_penalty": 1})):
        asked = request([1, 2], max_tokens)
        driver.submit(dataclasses.replace(asked, params=SamplingParams(**params)))
    samplers = [driver.step().sampler for _ in range(3)]
    assert samplers == [Sampler.EXTENDED, Sampler.EXTENDED, Sampler.LOGPROBS]


def test_the_same_calls_give_the_same_plans():
    plans = []
    for _ in range(2):
        driver, rng = Driver(scheduler_config(num_pages=9)), random.Random(0)
        for _ in range(20):
            submit(driver, rng.randint(1, 40), rng.randint(1, 40))
        plans.append([driver.step() for _ in range(100)])
    assert plans[0] == plans[1]
