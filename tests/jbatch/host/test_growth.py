"""Pages for sequences that grow, and who gives up theirs."""

import pytest

from jbatch.host.growth import grow
from jbatch.host.lifecycle import Lifecycle
from jbatch.host.limits import StepLimits
from jbatch.host.policies import POLICIES
from jbatch.host.policy import Policy
from jbatch.host.request import Sequence
from jbatch.outputs import FinishReason
from tests.helpers.driver import Driver
from tests.helpers.plans import plans_until_idle, show, submit, uncached
from tests.helpers.schedules import request, scheduler_config

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


WISHES = (  # of a, b and c: c comes last, and b is the one that every policy but fcfs would let run last
    {"arrival": 0.0, "predicted_len": 1, "priority": 0, "deadline": 9.0, "user": "x"},
    {"arrival": 1.0, "predicted_len": 8, "priority": 2, "deadline": None, "user": "y"},
    {"arrival": 2.0, "predicted_len": 4, "priority": 1, "deadline": 30.0, "user": "x"},
)


def by_priority(request, now, view):
    return (request.priority,)


@pytest.mark.parametrize(
    ("policy", "victim"),
    [
        (POLICIES["fcfs"], "c"),
        (POLICIES["sjf"], "b"),
        (POLICIES["priority"], "b"),
        (POLICIES["deadline"], "b"),
        (Policy(by_priority), "b"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_policy_says_who_gives_up_pages(policy, victim):
    """Eight pages of 4 tokens: a needs a fourth, where b and c have the rest."""
    driver = Driver(uncached(num_rows=3, num_pages=9, page_size=4)._replace(policy=policy), depth=0)
    a, b = submit(driver, 7, 12, **WISHES[0]), submit(driver, 4, 8, **WISHES[1])
    driver.step()
    c = submit(driver, 4, 8, **WISHES[2])
    driver.drain()
    driver.check_end()
    assert (a.num_preemptions, b.num_preemptions, c.num_preemptions) == (0, victim == "b", victim == "c")


@pytest.mark.parametrize("keys, victim", [([3, 1, 2], 2), ([1, 3, 2], 1), ([9, 2, 2], 2), ([5, 5, 1], 1)])
def test_the_oldest_is_no_victim_and_of_equal_ones_it_is_the_youngest(keys, victim):
    lifecycle = Lifecycle(uncached(num_rows=3, num_pages=4, page_size=4))
    running = []
    for seq_id, key in enumerate(keys):
        sequence = Sequence(seq_id, request([1, 2], 8), [1, 2], 2, key=(key,))
        lifecycle.add(sequence)
        lifecycle.admit(sequence, 2)
        assert grow(sequence, 2, lifecycle)
        running.append(sequence)
    assert grow(running[0], 5, lifecycle)
    assert lifecycle.take_preempted() == (victim,) and lifecycle.running[0] is running[0]
