"""Ten thousand random schedules on a fake device, every invariant checked after every step."""

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from jbatch.host.policy import MODES, POLICIES
from tests.helpers.schedules import HOST_STOP, run_seeds

NUM_SCHEDULES = 10_000
CHUNK = 250


def test_ten_thousand_schedules():
    """To see one again: `run_random_schedule(seed)` of tests/helpers/schedules.py."""
    chunks = [range(begin, begin + CHUNK) for begin in range(0, NUM_SCHEDULES, CHUNK)]
    totals, failures = Counter(), {}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for some_totals, some_failures in pool.map(run_seeds, chunks):
            totals += some_totals
            failures |= some_failures
    print(dict(totals))
    first = next(iter(failures), None)
    assert first is None, f"seeds {list(failures)} fail; seed {first}:\n{failures[first]}"

    assert totals["steps"] >= 600_000
    assert totals["num_preempted"] >= 5_000 and totals["recomputed"] >= 50_000
    for end in ("length", "stop", "abort", HOST_STOP):
        assert totals[end] >= 5_000
    for name in (*MODES, *POLICIES, "depth 0", "depth 1", "depth 2"):
        assert totals[name] >= 1_000, f"hardly any schedule with {name}"
    assert totals["wasted"] >= 10_000
