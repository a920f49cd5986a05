"""With ageing, no request waits for more than twice as many steps as in order of arrival, and a constant.

Steps are counted: each of a few rows gives its request a token a step, as decoding does. The constant is the
steps of four of the longest requests, and those of the tokens that may overtake before ageing begins.
"""

import heapq
import itertools
import random

import pytest

from jbatch.host.limits import SchedulerView
from jbatch.host.policies import POLICIES
from jbatch.host.policy import key_of
from jbatch.host.request import Sequence
from jbatch.host.waiting import Waiting
from tests.helpers.schedules import request
from tests.helpers.sizes import sized

AGED = [name for name, policy in POLICIES.items() if policy.ageing]
NUM_SCHEDULES = sized(150, 3_000)
LONGEST = 40


def waits(policy, requests, num_rows, overtaking=0):
    """Steps from each request's arrival to its admission."""
    waiting, rows, admitted = Waiting(policy, overtaking), [], {}
    to_come = sorted(requests, key=lambda request: request.arrival)
    for step in itertools.count():
        view = SchedulerView(float(step), len(waiting), len(rows), 0)
        while to_come and to_come[0].arrival <= step:
            asked = to_come.pop(0)
            seq_id = int(asked.request_id)
            waiting.push(Sequence(seq_id, asked, [1], 1, key=key_of(policy, asked, view)))
        while rows and rows[0] <= step:
            heapq.heappop(rows)
        waiting.rerank(view)
        while len(rows) < num_rows and (first := waiting.first()) is not None:
            waiting.pop(first)
            admitted[first.seq_id] = step - first.request.arrival
            heapq.heappush(rows, step + first.request.max_tokens)
        if not to_come and not len(waiting):
            return admitted
    raise AssertionError


def random_requests(rng):
    """More than the rows can serve at once, or about as many."""
    number, per_step = rng.randint(1, 60), rng.choice((0.02, 0.1, 1.0, 100.0))
    arrivals = sorted(float(int(rng.random() * number / per_step)) for _ in range(number))
    lengths = rng.choice(((1, LONGEST), (1, 3), (LONGEST - 5, LONGEST)))
    return [
        request(
            [1],
            rng.randint(*lengths),
            request_id=str(number),
            arrival=arrival,
            priority=rng.choice((-5, 0, 0, 3)),
            deadline=rng.choice((None, arrival + rng.randrange(1, 99))),
        )
        for number, arrival in enumerate(arrivals)
    ]


@pytest.mark.parametrize(
    "policy", [*(POLICIES[name] for name in AGED), POLICIES["ljf"]._replace(ageing=True)]
)
def test_no_one_waits_much_longer_than_twice(policy):
    worst = 0.0
    for seed in range(NUM_SCHEDULES):
        rng = random.Random(seed)
        requests, num_rows = random_requests(rng), rng.randint(1, 4)
        fcfs = waits(POLICIES["fcfs"], requests, num_rows)
        overtaking = rng.choice((0, 50, 200))
        ours = waits(policy, requests, num_rows, overtaking)
        for seq_id, waited in ours.items():
            worst = max(worst, waited - 2 * fcfs[seq_id])
            most = 2 * fcfs[seq_id] + 4 * LONGEST + overtaking / num_rows
            assert waited <= most, f"seed {seed}, request {seq_id}"
    assert worst > 0, "it is no longer tested"


def test_without_ageing_some_do():
    """All arrive at once but for a stream of shorter ones."""
    requests = [request([1], LONGEST, request_id="0", arrival=0.0)]
    requests += [request([1], 2, request_id=str(1 + idx), arrival=2.0 * idx) for idx in range(200)]
    assert waits(POLICIES["sjf"], requests, 1)[0] > 4 * LONGEST > waits(POLICIES["fcfs"], requests, 1)[0]
    aged = POLICIES["sjf"]._replace(ageing=True)
    assert waits(aged, requests, 1)[0] <= 4
