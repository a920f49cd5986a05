"""Random schedules on a fake device, ten thousand in full; every invariant checked after every step."""

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from tests.helpers.driver import HOST_STOP
from tests.helpers.random_schedules import run_seeds
from tests.helpers.sizes import sized

NUM_SCHEDULES = sized(1_000, 10_000)
CHUNK = 100


def test_random_schedules():
    """To see one again: `run_random_schedule(seed)` of tests/helpers/random_schedules.py."""
    chunks = [range(begin, begin + CHUNK) for begin in range(0, NUM_SCHEDULES, CHUNK)]
    totals, failures = Counter(), {}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for some_totals, some_failures in pool.map(run_seeds, chunks):
            totals += some_totals
            failures |= some_failures
    print(dict(totals))
    first = next(iter(failures), None)
    assert first is None, f"seeds {list(failures)} fail; seed {first}:\n{failures[first]}"

    assert totals["steps"] >= 60 * NUM_SCHEDULES
    assert totals["num_preempted"] >= NUM_SCHEDULES / 2 and totals["recomputed"] >= 5 * NUM_SCHEDULES
    for end in ("length", "stop", "abort", HOST_STOP):
        assert totals[end] >= NUM_SCHEDULES / 2
    for name in (*MODES, *POLICIES, "depth 0", "depth 1", "depth 2"):
        assert totals[name] >= NUM_SCHEDULES / 10, f"hardly any schedule with {name}"
    assert (
        totals["wasted"] >= NUM_SCHEDULES
        and totals["found"] >= NUM_SCHEDULES
        and totals["updates"] >= NUM_SCHEDULES / 2
    )
    assert totals["shared"] >= 5 * NUM_SCHEDULES and totals["held"] >= NUM_SCHEDULES / 20
    assert min(totals[kind] for kind in ("mixed", "several steps")) >= 2 * NUM_SCHEDULES
