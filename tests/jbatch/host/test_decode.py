"""Several steps in one dispatch."""

import dataclasses

import pytest

from jbatch.seam.bucket import Bucket
from tests.helpers.driver import Driver
from tests.helpers.plans import submit
from tests.helpers.schedules import request, scheduler_config


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
