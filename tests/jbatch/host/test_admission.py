"""Who may join, and when."""

import pytest

from jbatch.outputs import FinishReason
from tests.helpers.driver import Driver
from tests.helpers.plans import plans_until_idle, show, submit
from tests.helpers.schedules import scheduler_config


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
