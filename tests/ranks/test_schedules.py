"""Random schedules on two devices: every request gets the tokens that it gets alone on one."""

import pytest

from tests.helpers import tiny_engine
from tests.helpers.hf_checkpoint import tiny
from tests.helpers.tiny_engine import DECODE, EIGHT, MIXED, PREFILL, SEVERAL
from tests.property import test_real_model as schedules
from tests.ranks.runners import make_runner


@pytest.mark.long
def test_random_schedules(monkeypatch):
    for idx in range(schedules.NUM_REQUESTS):
        schedules.alone(idx)  # on one device
    buckets = (DECODE, PREFILL, MIXED, SEVERAL, EIGHT)
    runner = make_runner(tiny(), 2, tiny_engine.DEFAULT_SAMPLERS, buckets, given=tiny_engine.tiny_params())
    for module in (tiny_engine, schedules):
        monkeypatch.setattr(module, "shared_runner", lambda: runner)
    totals = schedules.run_schedule(10)  # the tests' own programs are compiled, too
    before = runner.compilations_after_warmup
    for seed in range(10):
        totals += schedules.run_schedule(seed)
    assert totals["requests"] >= 80 and totals["preempted"] > 0 and totals["found"] > 0
    assert totals["near-ties"] <= 3 and runner.compilations_after_warmup == before
