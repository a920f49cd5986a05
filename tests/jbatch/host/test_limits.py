"""How many prompt tokens join what decodes."""

import pytest

from jbatch.errors import ConfigError, UserFunctionError
from jbatch.host.limits import Company, SchedulerView, StepLimits, check_limits, choose, fill
from tests.helpers.driver import Driver
from tests.helpers.schedules import request, scheduler_config

SIZES = (32, 64, 128, 512)


@pytest.mark.parametrize(
    ("waiting", "most", "tokens"),
    [
        (8, 512, 512),  # no step is smaller: all of it
        (32, 512, 512),
        (56, 512, 512),  # 8 of 64 places would be padding
        (40, 512, 32),  # 24 would be: 32 now, and 8 in the next step
        (100, 512, 64),
        (104, 512, 512),
        (400, 512, 128),
        (2000, 512, 512),
        (2000, 100, 64),  # the budget fills no step
        (60, 48, 32),
    ],
)
def test_a_step_is_filled_or_takes_all(waiting, most, tokens):
    assert fill(waiting, SIZES, most) == tokens


def prefill_steps(company):
    """Of a, which decodes, and two short prompts that come while it does, two steps apart."""
    driver = Driver(scheduler_config(), 0, lambda view: StepLimits(64, 4, company))
    driver.submit(request([1, 2, 3], 12))
    seen = []
    for step in range(8):
        if step in (2, 4):
            driver.submit(request([1, 2, 3], 1))
        plan = driver.step()
        seen += [(step, len(plan.chunks))] if plan.chunks else []
    driver.drain()
    driver.check_end()
    return seen


@pytest.mark.parametrize(
    ("company", "steps"),
    [
        (Company(), [(0, 1), (2, 1), (4, 1)]),
        (Company(tokens=16, steps=5), [(0, 1), (4, 2)]),  # each is 8 tokens with its padding
        (Company(tokens=64, steps=3), [(0, 1), (5, 2)]),  # never enough: the first waits its three steps
        (Company(tokens=64, steps=1), [(0, 1), (3, 1), (5, 1)]),
    ],
)
def test_a_short_prompt_waits_for_company_beside_what_decodes(company, steps):
    assert prefill_steps(company) == steps


@pytest.mark.parametrize(
    "given",
    [
        None,
        (64, 4),
        StepLimits(64.5, 4),
        StepLimits(64, None),
        StepLimits(64, 4, None),
        StepLimits(-1, 4),
        StepLimits(64, -1),
    ],
)
def test_limits_that_are_none_are_refused_by_name(given):
    view = SchedulerView(0.0, 1, 0, 9)
    with pytest.raises(
        UserFunctionError,
        match=r"^limits='<lambda>': it must give StepLimits of integers of at least 0, and gave",
    ):
        choose(lambda view: given, view)
    with pytest.raises(UserFunctionError, match=r"^limits='<lambda>': it fails: ZeroDivisionError"):
        choose(lambda view: 1 / 0, view)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (7, "limits=7: must be a function of a SchedulerView that gives StepLimits"),
        (StepLimits(64, 4), "limits=StepLimits.*: must be a function"),
        (lambda: None, r"limits='<lambda>': it is called as <lambda>\(view\), and takes \(\)"),
        (lambda view, now: None, r"takes \(view, now\)"),
    ],
)
def test_what_is_no_function_of_a_view_is_refused_at_once(limits, message):
    with pytest.raises(ConfigError, match=message):
        check_limits(limits)
    for fine in (lambda view, more=1: None, lambda *args: None, print):
        assert check_limits(fine) is fine
