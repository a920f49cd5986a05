"""Replicas on fake devices, whose tokens can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

from jbatch.engine.engine import Engine
from jbatch.engine.intake import Intake
from jbatch.engine.replicas import Replicas
from jbatch.host.scheduler import Scheduler
from jbatch.sim.fake_runner import FakeRunner
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tokenizers import numbered, wrapped


class Device(FakeRunner):
    """A fake device whose steps take a number of looks at them, and which fails at one of its steps."""

    def __init__(self, shape, takes=0, fails_at=None, error=None):
        super().__init__(shape, VOCAB_SIZE)
        self.takes, self.fails_at, self.error = takes, fails_at, error or RuntimeError("a device is lost")
        self._looks = 0

    def submit(self, step):
        if self.fails_at is not None and self.num_steps >= self.fails_at:
            raise self.error
        return super().submit(step)

    def is_ready(self, handle):
        self._looks += 1
        return self._looks % (self.takes + 1) == 0


def make_replicas(
    num: int = 2,
    *,
    device: Callable[..., FakeRunner] = lambda shape, idx: Device(shape),
    policy: str = "fcfs",
    seed: int = 0,
    tokenizer: bool = False,
    **sizes,
) -> Replicas:
    """One for each device that `device(shape, idx)` makes."""
    config = scheduler_config(policy=policy, **{"num_rows": 2, **sizes})
    schedulers = [Scheduler(config) for _ in range(num)]
    intake = Intake(
        vocab_size=VOCAB_SIZE,
        max_seq_len=schedulers[0].max_seq_len,
        seed=seed,
        tokenizer=wrapped(numbered()) if tokenizer else None,
    )
    engines = [
        Engine(scheduler, device(config.shape, idx), intake) for idx, scheduler in enumerate(schedulers)
    ]
    return Replicas(engines, sleep=lambda seconds: None)
