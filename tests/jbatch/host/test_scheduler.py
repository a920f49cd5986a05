"""The scheduler by hand: exact plans of small scenarios. At random: tests/property."""

import dataclasses
import random

import numpy as np
import pytest

from jbatch.errors import RequestError
from jbatch.host import scheduler as scheduler_module
from jbatch.host.limits import StepLimits
from jbatch.host.metrics import summarise
from jbatch.host.plan import TableUpdate
from jbatch.host.policy import MODES
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.sampling_params import Sampler, SamplingParams
from jbatch.seam.bucket import Bucket, room_of
from jbatch.seam.step_output import Status, StepOutput, num_draws
from tests.helpers.invariants import check_invariants
from tests.helpers.schedules import Driver, buckets, request, scheduler_config


def show(plan):
    """ "prefill 32: a[0:5]! b[0:16]" (! draws), "decode 2: a (b)" ((b) is frozen), "mixed 32: a b[0:16]"."""
    names = ["abcdefgh"[seq_id] for seq_id in plan.seq_ids]
    frozen = plan.frozen or [False] * len(names)
    slots = [f"({name})" if held else name for name, held in zip(names, frozen, strict=True)]
    if not plan.chunks:
        return f"decode {plan.bucket.slots}: {' '.join(slots)}"
    chunks = [f"{'abcdefgh'[c.seq_id]}[{c.start}:{c.end}]{'!' if c.draws else ''}" for c in plan.chunks]
    return f"{'mixed' if names else 'prefill'} {plan.bucket.tokens}: {' '.join(slots + chunks)}"


def plans_until_idle(driver):
    shown = []
    while driver.scheduler.has_unfinished or driver.in_flight:
        plan = driver.step()
        if plan is not None:
            shown.append(show(plan))
    driver.check_end()
    return shown


def uncached(**changes):
    """What is computed again is not found."""
    return scheduler_config(enable_prefix_caching=False, **changes)


def submit(driver, prompt_len, max_tokens, **fields):
    return driver.submit(request(range(1, prompt_len + 1), max_tokens, **fields))


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
    assert not driver.scheduler.has_unfinished


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


def starts(driver, steps):
    """The steps of so many in which a sequence begins."""
    plans = [driver.step() for _ in range(steps)]
    return [at for at, plan in enumerate(plans, start=1) if plan is not None and plan.chunks]


def test_a_full_batch_starts_at_once_and_one_that_is_not_at_its_time():
    driver = Driver(scheduler_config("static-full", num_rows=2))
    first = submit(driver, 5, 2)
    assert starts(driver, 2) == [] and not driver.scheduler.running
    second = submit(driver, 5, 2)
    third = submit(driver, 5, 2)
    assert starts(driver, 3) == [1], "in company, and without the third"
    assert first.finished and second.finished and not third.running
    assert starts(driver, 2) == [1], "it has waited 4 seconds while the others ran"
    driver.drain()
    last = submit(driver, 5, 2)
    assert starts(driver, 6) == [4] and last.finished
    driver.check_end()


def test_an_aborted_request_fills_no_batch():
    driver = Driver(scheduler_config("static-full", num_rows=2))
    driver.end(submit(driver, 5, 2), FinishReason.ABORT)
    submit(driver, 5, 2)
    assert starts(driver, 6) == [4]


def lines(table):
    return [line.strip() for line in table.strip().splitlines()]


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


# Prefill.


def test_several_prompts_share_a_step_each_at_a_multiple_of_8():
    driver = Driver(scheduler_config())
    for prompt_len in (5, 8, 9, 30):
        submit(driver, prompt_len, 1)
    assert plans_until_idle(driver) == ["prefill 64: a[0:5]! b[0:8]! c[0:9]! d[0:30]!"]  # 8 + 8 + 16 + 32


def test_a_prompt_that_does_not_fit_goes_on_in_the_next_step():
    driver = Driver(scheduler_config(num_pages=33))
    for prompt_len in (5, 30, 40):
        submit(driver, prompt_len, 1)
    assert plans_until_idle(driver) == ["prefill 64: a[0:5]! b[0:30]! c[0:16]", "prefill 32: c[16:40]!"]


@pytest.mark.parametrize(
    ("sizes", "plans"),
    [
        ((16,), ["prefill 16: a[0:4]!", "prefill 16: b[0:4]!", "prefill 16: c[0:4]!"]),
        ((40,), ["prefill 40: a[0:4]! b[0:4]!", "prefill 40: c[0:4]!"]),
        ((16, 40), ["prefill 40: a[0:4]! b[0:4]!", "prefill 16: c[0:4]!"]),
        ((24, 64), ["prefill 64: a[0:4]! b[0:4]! c[0:4]!"]),  # 24 tokens: too many prompts for the smaller
    ],
)
def test_a_step_takes_a_prompt_for_each_16_of_its_tokens(sizes, plans):
    driver = Driver(scheduler_config(buckets=buckets(sizes, (1, 2, 4))))
    for _ in range(3):
        submit(driver, 4, 1)
    assert plans_until_idle(driver) == plans


def test_a_step_whose_room_for_table_updates_is_full_makes_the_next_in_line_wait(monkeypatch):
    """Room for three: a takes two of them and b the third. c, whose tokens would fit, waits, and d does not
    overtake it."""
    monkeypatch.setattr(scheduler_module, "room_of", lambda *of: room_of(*of)._replace(table_updates=3))
    driver = Driver(scheduler_config())
    for prompt_len in (20, 10, 20, 3):
        submit(driver, prompt_len, 1)
    assert plans_until_idle(driver) == ["prefill 64: a[0:20]! b[0:10]!", "prefill 32: c[0:20]! d[0:3]!"]


CHUNKED = {
    "continuous": """
        prefill 32: a[0:3]! b[0:16]
        mixed 32: a b[16:32]
        mixed 32: a b[32:48]!
        decode 2: a b
        decode 1: a
        decode 1: a
    """,
    "static": """
        prefill 32: a[0:3]! b[0:16]
        prefill 32: b[16:32]
        prefill 32: b[32:48]!
        decode 2: a b
        decode 1: a
        decode 1: a
        decode 1: a
        decode 1: a
    """,
}


@pytest.mark.parametrize("mode", CHUNKED)
def test_a_long_prompt_in_chunks_of_a_budget_of_24(mode):
    """They end with pages. Continuous: a goes on at every step. Static prefills its whole batch first."""
    driver = Driver(scheduler_config(mode, num_rows=2), limits=lambda view: StepLimits(24, 2))
    submit(driver, 3, 6)
    submit(driver, 48, 2)
    assert plans_until_idle(driver) == lines(CHUNKED[mode])


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


def test_a_step_without_a_token_budget_prefills_nothing():
    budget = [64, 0, 0, 64]
    scheduler = Scheduler(scheduler_config(), lambda view: StepLimits(budget.pop(0), 4))
    scheduler.add(request([1] * 5, 4))
    assert show(scheduler.schedule(0.0)) == "prefill 32: a[0:5]!"
    scheduler.add(request([1] * 5, 1))
    assert [show(scheduler.schedule(0.0)) for _ in range(3)] == [
        "decode 1: a", "decode 1: a", "mixed 32: a b[0:5]!",
    ]  # fmt: skip


# Several steps in one dispatch.


def several(num_steps=4, **changes):
    """Decoding once or `num_steps` times."""
    config = scheduler_config(**changes)
    return config._replace(buckets=(*config.buckets, *(Bucket(size, 0, num_steps) for size in (1, 2, 4))))


def steps_of(driver):
    """How often each dispatch decoded."""
    driver.drain()
    driver.check_end()
    return [record.num_decode_steps for record in driver.records if record.slots_used]


def test_several_steps_while_nobody_waits():
    """a has its first token and ten to go: twice four at once, then two, one by one."""
    driver = Driver(several())
    a = submit(driver, 5, 11)
    assert steps_of(driver) == [4, 4, 1, 1] and len(a.output_token_ids) == 11
    assert [record.slots for record in driver.records if record.slots_used] == [4, 4, 1, 1]


def test_one_step_at_a_time_while_a_request_waits():
    driver = Driver(several(num_rows=1))
    submit(driver, 5, 9)
    submit(driver, 5, 9)
    assert steps_of(driver) == [1] * 8 + [4, 4]


@pytest.mark.parametrize("watched", [{"stop": "x"}, {"logprobs": 1}, {"prompt_logprobs": 0}])
def test_one_step_at_a_time_where_each_token_is_looked_at(watched):
    asked = request([1] * 5, 9)
    params = dataclasses.replace(asked.params, **watched)
    for watching in (dataclasses.replace(asked, params=params), dataclasses.replace(asked, streamed=True)):
        driver = Driver(several())
        driver.submit(watching)
        submit(driver, 5, 13)
        assert steps_of(driver) == [1] * 8 + [4]


def test_an_end_within_several_steps_wastes_the_rest():
    driver = Driver(several(), depth=0)
    a = driver.submit(request([1, 2], 9, stop_ids=(11,)))  # its second token
    assert steps_of(driver) == [4] and a.output_token_ids == [5, 11]
    assert [(record.useful_slots, record.wasted) for record in driver.records] == [(0, 0), (1, 3)]


def test_several_steps_take_no_pages_from_others():
    """Eight pages of 4 tokens, for two sequences of 16: both grow to the end by single steps where the pool
    cannot hold four more of each."""
    driver = Driver(several(num_rows=2, num_pages=8, page_size=4, max_model_len=32))
    for _ in range(2):
        submit(driver, 4, 12)
    assert 4 in steps_of(driver) and sum(record.num_preempted for record in driver.records) == 1


# Ends.


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_end_by_stop_id_is_known_late_and_costs_a_row_per_step_ahead(depth):
    driver = Driver(scheduler_config(), depth)
    stopped = driver.submit(request([1, 2], 9, stop_ids=(11,)))
    driver.drain()
    driver.check_end()
    assert stopped.output_token_ids == [5, 11]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, 11)
    assert [record.wasted for record in driver.records] == [0, 0] + [1] * depth


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_end_by_length_is_known_in_advance(depth):
    driver = Driver(scheduler_config(), depth)
    submit(driver, 2, 3)
    assert plans_until_idle(driver) == ["prefill 32: a[0:2]!", "decode 1: a", "decode 1: a"]
    assert sum(record.wasted for record in driver.records) == 0


def test_a_stop_string_drops_the_token_in_flight():
    driver = Driver(scheduler_config(), stops=lambda sequence: sequence.token_ids[-1] == 11)
    stopped = driver.submit(request([1, 2], 9))
    driver.drain()
    driver.check_end()
    assert stopped.output_token_ids == [5, 11] and stopped.stop_reason == "stop string"
    assert [record.wasted for record in driver.records] == [0, 0, 1]


def test_an_end_of_sequence_has_no_stop_reason():
    """As in vLLM: only a token named in stop_token_ids is one."""
    scheduler = Scheduler(scheduler_config())
    sequence = scheduler.add(dataclasses.replace(request([1, 2], 9), stop_ids=(11,)))
    came_back(scheduler, scheduler.schedule(0.0), [11], statuses=(Status.STOPPED,))
    assert (sequence.finish_reason, sequence.stop_reason) == (FinishReason.STOP, None)


def test_a_row_that_is_not_finite_ends_alone():
    scheduler = Scheduler(scheduler_config())
    good, bad = (scheduler.add(request([1, 2, 3], 9)) for _ in range(2))
    plan = scheduler.schedule(0.0)
    progress, record = came_back(scheduler, plan, [7], [], statuses=(Status.RUNNING, Status.NON_FINITE))
    assert progress == [(good, [7]), (bad, [])] and record.output_tokens == 1
    assert bad.finish_reason == FinishReason.ERROR and "position 3" in bad.error and "bfloat16" in bad.error
    assert scheduler.running == (good,) and not good.finished


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", range(9))
def test_abort_gives_all_back_at_once_in_any_state(mode, steps):
    """After 0 steps it waits, after 1 to 3 it prefills in chunks, then it decodes; after 7 it has ended."""
    driver = Driver(scheduler_config(mode), limits=lambda view: StepLimits(16, 1))
    sequence = submit(driver, 40, 4)
    for _ in range(steps):
        driver.step()
    driver.end(sequence, FinishReason.ABORT)
    driver.end(sequence, FinishReason.ABORT)
    assert driver.scheduler.pool.num_used == 0 and not driver.scheduler.has_unfinished
    assert sequence.finish_reason == (FinishReason.LENGTH if steps >= 7 else FinishReason.ABORT)
    assert len(sequence.output_token_ids) == min(4, max(0, steps - 3))
    driver.drain()
    driver.check_end()


def test_a_padded_batch_holds_an_aborted_row_until_the_last_one_ends():
    driver = Driver(scheduler_config("static-padded"), depth=0)
    first, last = submit(driver, 4, 9), submit(driver, 4, 4)
    driver.step()
    waiting = submit(driver, 4, 1)
    driver.end(first, FinishReason.ABORT)
    assert driver.scheduler.running == (first, last) and len(first.pages) == 1
    assert [show(driver.step()) for _ in range(3)] == ["decode 2: (a) b"] * 3
    assert not driver.scheduler.running and not first.pages
    assert plans_until_idle(driver) == ["prefill 32: c[0:4]!"] and waiting.finished


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


# Pages.

PREEMPTED = [
    "prefill 32: a[0:4]! b[0:4]!",
    *["decode 2: a b"] * 4,
    *["decode 1: a"] * 7,  # a's 9th token needs a third page: b gives its two back, and waits for three
    "prefill 32: b[0:9]!",
    *["decode 1: b"] * 2,
]


def test_the_youngest_is_preempted_and_computed_again():
    """Four pages of 4 tokens: a grows to 16 tokens, b to 12."""
    driver = Driver(uncached(num_rows=2, num_pages=5, page_size=4), depth=0)
    submit(driver, 4, 12)
    b = submit(driver, 4, 8)
    assert plans_until_idle(driver) == PREEMPTED
    assert b.num_preemptions == 1
    assert [record.num_preempted for record in driver.records] == [0] * 5 + [1] + [0] * 9
    assert [record.recomputed for record in driver.records] == [0] * 12 + [8] + [0] * 2
    again = driver.records[12]
    assert (again.useful, again.padded) == (1, 4 + 32 - 9)  # its last token had never been in the cache
    assert sum(record.useful for record in driver.records) == 15 + 11


def test_a_preempted_sequence_joins_again_only_once_its_tokens_have_landed():
    """Two steps ahead, b is preempted with a token in flight: with a gone, it still waits for that token."""
    driver = Driver(scheduler_config(num_rows=2, num_pages=5, page_size=4), depth=2)
    a, b = submit(driver, 4, 12), submit(driver, 4, 8)
    while not b.num_preemptions:
        driver.step()
    driver.end(a, FinishReason.ABORT)
    assert (b.num_known, b.num_planned) == (8, 9)
    assert driver.step() is None
    assert show(driver.step()) == "prefill 32: b[4:9]!"  # its first page is still there
    driver.drain()
    driver.check_end()


def test_what_is_computed_three_times_is_recomputed_twice():
    """Seven pages of 4 tokens. a preempts b, c ends, b begins again with 4 of its tokens, and a grows on."""
    tokens = {0: lambda: 64, 1: lambda: 0 if b.running else 4, 2: lambda: 64}
    driver = Driver(
        uncached(num_pages=8, page_size=4), 0, lambda view: StepLimits(tokens[b.num_preemptions](), 3)
    )
    submit(driver, 4, 24)
    submit(driver, 8, 6)
    b = submit(driver, 4, 8)
    driver.drain()
    driver.check_end()
    assert b.num_preemptions == 2
    assert [record.recomputed for record in driver.records if record.recomputed] == [4, 8]
    assert sum(record.useful for record in driver.records) == 27 + 13 + 11


def test_a_prompt_without_a_page_for_its_next_chunk_keeps_its_pages_and_waits():
    """Seven pages of 4 tokens: after b's first chunk a grows to five of them, and ends."""

    def limits(view):
        return StepLimits(4 if not b.num_cached else 64 if a.finished or a.num_cached > 16 else 0, 4)

    driver = Driver(uncached(num_pages=8, page_size=4), 0, limits)
    a, b = submit(driver, 4, 16), submit(driver, 12, 2)
    assert plans_until_idle(driver) == [
        "prefill 32: a[0:4]!", "mixed 32: a b[0:4]", *["decode 1: a"] * 14,
        "prefill 32: b[4:12]!", "decode 1: b",
    ]  # fmt: skip
    assert b.num_preemptions == 0


def test_admission_leaves_pages_for_those_admitted_before():
    """Three pages of 4 tokens: a's prompt of 8 will need the third, so b waits."""
    driver = Driver(scheduler_config(num_rows=2, num_pages=4, page_size=4), depth=0)
    submit(driver, 8, 3)
    submit(driver, 2, 2)
    assert plans_until_idle(driver) == [
        "prefill 32: a[0:8]!", "decode 1: a", "decode 1: a", "prefill 32: b[0:2]!", "decode 1: b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("num_pages", "plans"),
    [
        (4, [*["decode 1: a"] * 6, "prefill 32: b[0:2]!"]),
        (5, ["mixed 32: a b[0:2]!", *["decode 1: a"] * 5]),
    ],
)
def test_admission_leaves_a_free_page_for_each_running_sequence(num_pages, plans):
    """a decodes on two pages of 4 tokens, and will need a third. b needs one: it waits where one is free, and
    joins where two are."""
    driver = Driver(scheduler_config(num_rows=2, num_pages=num_pages, page_size=4), depth=0)
    a = submit(driver, 4, 8)
    assert [show(driver.step()) for _ in range(2)] == ["prefill 32: a[0:4]!", "decode 1: a"]
    assert len(a.pages) == 2 and driver.scheduler.pool.num_free == num_pages - 3
    b = submit(driver, 2, 1)
    assert plans_until_idle(driver) == plans
    assert a.num_preemptions == b.num_preemptions == 0


def test_a_padded_batch_takes_only_what_fits_in_the_worst_case():
    driver = Driver(scheduler_config("static-padded", num_pages=5, page_size=4), depth=0)
    for _ in range(3):
        submit(driver, 2, 6)  # 8 tokens, 2 pages
    assert show(driver.step()) == "prefill 32: a[0:2]! b[0:2]!"
    driver.drain()
    driver.check_end()


def test_the_first_in_line_is_not_overtaken_by_one_that_would_fit():
    driver = Driver(scheduler_config(num_rows=3, num_pages=6, page_size=4), depth=0)
    for prompt_len in (8, 12, 1):  # a holds two pages, and will hold three; b needs four
        submit(driver, prompt_len, 2)
    assert show(driver.step()) == "prefill 32: a[0:8]!"
    driver.drain()
    driver.check_end()


# Lengths: what is planned, and what came back.


def came_back(scheduler, plan, *results, statuses=()):
    """Of each draw, in order: its tokens. All go on, where nothing else is said."""
    draws = num_draws(plan.bucket, scheduler.config.shape)
    output = StepOutput(np.zeros((draws, 1), int), np.zeros(draws, int), np.zeros(draws, int))
    places = [*range(len(plan.seq_ids)), *range(plan.bucket.slots, draws)]
    for place, tokens in zip(places, results, strict=False):
        output.tokens[place, : len(tokens)], output.num_tokens[place] = tokens, len(tokens)
    for place, status in zip(places, statuses, strict=False):
        output.status[place] = status
    return scheduler.apply(plan, output)


def lengths(sequence):
    """What is so, and what will be at most: known and planned, cached and planned to be."""
    return (
        (sequence.num_known, sequence.num_planned),
        (sequence.num_cached, sequence.num_cached_planned),
    )


def test_lengths_are_of_what_landed():
    """A prompt in three chunks, all under way at once, and a decoding step behind them."""
    scheduler = Scheduler(scheduler_config(), lambda view: StepLimits(16, 4))
    a = scheduler.add(request(range(1, 41), 9))
    plans = [scheduler.schedule(0.0) for _ in range(4)]
    assert [show(plan) for plan in plans] == [
        "prefill 32: a[0:16]", "prefill 32: a[16:32]", "prefill 32: a[32:40]!", "decode 1: a",
    ]  # fmt: skip
    assert lengths(a) == ((40, 42), (0, 41))
    seen = []
    for plan, tokens in zip(plans, ([], [], [7], [8]), strict=True):
        came_back(scheduler, plan, tokens)
        check_invariants(scheduler)
        seen.append(lengths(a))
    assert seen == [((40, 42), (16, 41)), ((40, 42), (32, 41)), ((41, 42), (40, 41)), ((42, 42), (41, 41))]


def test_a_draw_without_a_token_is_taken_back_and_planned_again():
    scheduler = Scheduler(scheduler_config())
    a = scheduler.add(request([1, 2, 3], 9))
    came_back(scheduler, scheduler.schedule(0.0), [7])
    first = scheduler.schedule(0.0)
    assert show(first) == "decode 1: a" and lengths(a) == ((4, 5), (3, 4))
    progress, record = came_back(scheduler, first, [])
    assert progress == [(a, [])] and (record.output_tokens, record.useful) == (0, 1)
    assert lengths(a) == ((4, 4), (3, 3)) and not a.finished
    check_invariants(scheduler)
    again = scheduler.schedule(0.0)
    assert dataclasses.replace(again, step_idx=first.step_idx) == first and lengths(a) == ((4, 5), (3, 4))
    came_back(scheduler, again, [8])
    assert a.output_token_ids == [7, 8] and lengths(a) == ((5, 5), (4, 4))


def test_a_draw_without_a_token_while_the_next_step_is_under_way():
    """b's tokens come as ever; a is one behind, and its budget is no smaller for that."""
    scheduler = Scheduler(scheduler_config())
    a, b = (scheduler.add(request([1, 2, 3], 4)) for _ in range(2))
    plans = [scheduler.schedule(0.0) for _ in range(3)]
    assert lengths(a) == lengths(b) == ((3, 6), (0, 5))
    for plan, results in zip(plans, (([7], [7]), ([], [8]), ([8], [9])), strict=True):
        came_back(scheduler, plan, *results)
        check_invariants(scheduler)
    assert lengths(a) == ((5, 5), (4, 4)) and lengths(b) == ((6, 6), (5, 5))
    assert show(scheduler.schedule(0.0)) == "decode 2: a b" and lengths(a) == ((5, 6), (4, 5))


def test_a_row_is_free_for_the_next_step_once_its_last_token_is_planned():
    """b takes a's row and its page in the step behind, before a's last token is there."""
    scheduler = Scheduler(scheduler_config(num_rows=1, num_pages=2))
    a, b = scheduler.add(request([1, 2, 3], 2)), scheduler.add(request([1, 2], 1))
    plans = [scheduler.schedule(0.0) for _ in range(3)]
    assert [show(plan) for plan in plans] == ["prefill 32: a[0:3]!", "decode 1: a", "prefill 32: b[0:2]!"]
    assert {plans[1].rows[0], plans[2].chunks[0].row} == {0} and scheduler.pool.num_used == 0
    assert scheduler.schedule(0.0) is None and scheduler.has_unfinished
    for plan, token in zip(plans, (7, 8, 9), strict=True):
        check_invariants(scheduler)
        came_back(scheduler, plan, [token], statuses=(Status.OUT_OF_BUDGET * (token > 7),))
    assert (a.output_token_ids, b.output_token_ids) == ([7, 8], [9]) and not scheduler.has_unfinished


def test_one_that_left_for_a_token_that_did_not_come_is_computed_again():
    scheduler = Scheduler(scheduler_config())
    a = scheduler.add(request([1, 2, 3], 3))
    plans = [scheduler.schedule(0.0) for _ in range(3)]
    assert a.leaving and lengths(a) == ((3, 6), (0, 0))
    for plan, results in zip(plans, ([7], [], [8]), strict=True):
        assert scheduler.schedule(0.0) is None
        came_back(scheduler, plan, results)
        check_invariants(scheduler)
    again = scheduler.schedule(0.0)
    assert show(again) == "prefill 32: a[0:5]!" and again.chunks[0].num_recomputed == 4
    came_back(scheduler, again, [9], statuses=(Status.OUT_OF_BUDGET,))
    assert a.output_token_ids == [7, 8, 9] and not scheduler.has_unfinished


def test_a_draw_without_a_token_keeps_the_page_that_it_was_given():
    """The fifth token begins a page of 4: the next plan finds it in the table."""
    scheduler = Scheduler(scheduler_config(page_size=4))
    a = scheduler.add(request([1, 2, 3, 4], 9))
    came_back(scheduler, scheduler.schedule(0.0), [7])
    first = scheduler.schedule(0.0)
    assert first.table_updates == (TableUpdate(0, 1, 2),)
    came_back(scheduler, first, [])
    assert scheduler.schedule(0.0).table_updates == () and a.pages == [1, 2]
    check_invariants(scheduler)


def test_a_mixed_step_gives_the_draws_of_slots_and_then_those_of_chunks():
    """b decodes in front; behind, c's prompt ends and d's begins."""
    scheduler = Scheduler(scheduler_config(), lambda view: StepLimits(24, 4))
    ended, b = (scheduler.add(request([1, 2, 3], 9)) for _ in range(2))
    came_back(scheduler, scheduler.schedule(0.0), [4], [5])
    c, d = scheduler.add(request([1, 2], 9)), scheduler.add(request([1] * 30, 9))
    mixed = scheduler.schedule(0.0)
    assert show(mixed) == "mixed 32: a b c[0:2]! d[0:16]" and mixed.bucket == Bucket(4, 32)
    scheduler.finish(ended, FinishReason.ABORT)
    progress, record = came_back(scheduler, mixed, [6], [7], [8])
    assert progress == [(b, [7]), (c, [8])] and (b.num_cached, c.num_cached, d.num_cached) == (4, 2, 16)
    assert (record.kind, record.slots, record.slots_used, record.tokens) == ("mixed", 4, 2, 32)
    assert (record.useful_slots, record.useful_tokens, record.wasted, record.padded) == (1, 18, 1, 16)
    assert (record.computed, record.output_tokens) == (36, 2)
    check_invariants(scheduler)


def test_a_chunk_counts_as_long_as_someone_draws_from_it():
    """The prompt that a and b share is a's; a is aborted, and then b."""
    scheduler = Scheduler(scheduler_config())
    a, b = (scheduler.add(request([1, 2, 3], 9)) for _ in range(2))
    plan = scheduler.schedule(0.0)
    first, second = plan.chunks
    shared = dataclasses.replace(plan, chunks=(first._replace(draws=first.draws + second.draws),))
    scheduler.finish(a, FinishReason.ABORT)
    progress, record = came_back(scheduler, shared, [7], [8])
    assert progress == [(b, [8])] and (record.useful_tokens, record.wasted) == (3, 0)
    scheduler.finish(b, FinishReason.ABORT)
    progress, record = came_back(scheduler, shared, [7], [8])
    assert progress == [] and (record.useful_tokens, record.wasted) == (0, 3)


def test_a_preempted_sequences_chunk_of_an_earlier_attempt_sets_no_length():
    """Five pages of 4 tokens, and ten steps under way: a grows to four, which takes b's two. a is aborted,
    and b begins again with half of the chunk that now lands."""
    budget = [16]
    scheduler = Scheduler(
        scheduler_config(num_rows=2, num_pages=6, page_size=4), lambda view: StepLimits(budget[0], 2)
    )
    a, b = scheduler.add(request([1] * 4, 16)), scheduler.add(request([2] * 10, 1))
    plans = [scheduler.schedule(0.0)]
    assert show(plans[0]) == "prefill 32: a[0:4]! b[0:8]"
    budget[0] = 0
    plans += [scheduler.schedule(0.0) for _ in range(9)]
    assert plans[-1].preempted == (b.seq_id,) and len(a.pages) == 4
    scheduler.finish(a, FinishReason.ABORT)
    budget[0] = 4
    again = scheduler.schedule(0.0)
    assert show(again) == "prefill 32: b[0:4]" and again.chunks[0].attempt == 1
    for plan in plans:
        came_back(scheduler, plan)
        assert lengths(b) == ((10, 10), (0, 4))
        check_invariants(scheduler)
    came_back(scheduler, again)
    assert lengths(b) == ((10, 10), (4, 4))


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
