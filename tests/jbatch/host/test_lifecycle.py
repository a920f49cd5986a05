"""Ends, in whatever state a sequence is."""

import dataclasses

import pytest

from jbatch.host.limits import StepLimits
from jbatch.host.policy import MODES
from jbatch.host.scheduler import Scheduler
from jbatch.outputs import FinishReason
from jbatch.seam.step_output import Status
from tests.helpers.driver import Driver
from tests.helpers.plans import came_back, plans_until_idle, show, submit
from tests.helpers.schedules import request, scheduler_config


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
