"""Which tokens of prompts a step computes."""

import pytest

from jbatch.host import prefill as prefill_module
from jbatch.host.limits import StepLimits
from jbatch.host.scheduler import Scheduler
from jbatch.seam.bucket import room_of
from tests.helpers.driver import Driver
from tests.helpers.plans import lines, plans_until_idle, show, submit
from tests.helpers.schedules import buckets, request, scheduler_config


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
    monkeypatch.setattr(prefill_module, "room_of", lambda *of: room_of(*of)._replace(table_updates=3))
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


def test_a_step_without_a_token_budget_prefills_nothing():
    budget = [64, 0, 0, 64]
    scheduler = Scheduler(scheduler_config(), lambda view: StepLimits(budget.pop(0), 4))
    scheduler.add(request([1] * 5, 4))
    assert show(scheduler.schedule(0.0)) == "prefill 32: a[0:5]!"
    scheduler.add(request([1] * 5, 1))
    assert [show(scheduler.schedule(0.0)) for _ in range(3)] == [
        "decode 1: a", "decode 1: a", "mixed 32: a b[0:5]!",
    ]  # fmt: skip
