"""What a simulation runs on: engines on a runner that computes nothing and takes time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.ladder.arms import Arm
from bench.measure.floor import Floor
from jbatch.config import EngineConfig
from jbatch.engine.engine import Engine
from jbatch.host.config import scheduler_config
from jbatch.host.itl_limits import limits_of
from jbatch.host.lengths.prediction import Predictor
from jbatch.host.policies import POLICIES
from jbatch.host.policy import Policy
from jbatch.host.scheduler import Scheduler
from jbatch.seam.bucket import buckets_of
from jbatch.seam.shape import StateShape
from jbatch.sim.clock import VirtualClock
from jbatch.sim.cost import Chance, Cost, CostError, CostTable
from jbatch.sim.load import Load
from jbatch.sim.timed_runner import TimedIntake, TimedRunner


class Simulated(NamedTuple):
    """An engine's sizes, and what its steps cost."""

    config: EngineConfig
    max_model_len: int
    num_pages: int
    vocab_size: int
    costs: Cost
    about: Mapping[str, Any]

    @property
    def shape(self) -> StateShape:
        """Of the state that a device would hold."""
        page_size = self.config.page_size
        return StateShape(
            self.config.max_num_seqs, self.num_pages, page_size, -(-self.max_model_len // page_size)
        )


class SimulatedSubject:
    """A `Subject` without model and device. Chance comes from `seed`, anew for each engine.

    Args:
      output_lens: of each request, where it ends before its budget does.

    Raises:
      CostError: for sizes whose steps have no costs.
    """

    floor: Floor | None = None

    def __init__(self, simulated: Simulated, output_lens: Mapping[int, int] | None = None, seed: int = 0):
        self.simulated = simulated
        self.page_size, self.max_num_seqs = simulated.config.page_size, simulated.config.max_num_seqs
        self._output_lens, self._seed = output_lens, seed
        self.about = dict(simulated.about)
        self._check()

    def new_engine(
        self,
        arm: Arm,
        max_num_seqs: int,
        predictor: Predictor | None = None,
        policy: Policy | None = None,
        loads: list[Load] | None = None,
    ) -> Engine:
        """A fresh engine, at time 0; with another policy than the arm's, where one is given, and with its
        steps' loads noted in `loads`."""
        sim, clock = self.simulated, VirtualClock()
        config = dataclasses.replace(sim.config, mode=arm.mode, policy=arm.policy)
        buckets = buckets_of(config, sim.max_model_len)
        limits = limits_of(config, buckets, max_num_seqs)
        order = policy or POLICIES[arm.policy]
        scheduler = Scheduler(scheduler_config(config, sim.shape, sim.max_model_len, buckets, order), limits)
        intake = TimedIntake(
            sim.costs,
            clock,
            vocab_size=sim.vocab_size,
            max_seq_len=scheduler.max_seq_len,
            seed=config.seed,
            predictor=predictor,
        )
        cost = Chance(sim.costs, self._seed) if isinstance(sim.costs, CostTable) else sim.costs
        runner = TimedRunner(sim.shape, cost, clock, self._output_lens, loads)
        return Engine(
            scheduler,
            runner,
            intake,
            overlap=config.overlap,
            clock=clock,
            sleep=clock.advance,
            on_record=getattr(limits, "landed", None),
        )

    def num_compilations(self) -> int:
        """None: there are no programs."""
        return 0

    def rebuild(self) -> None:
        """Nothing is kept between engines."""

    def _check(self) -> None:
        if not isinstance(self.simulated.costs, CostTable):
            return
        needed = buckets_of(self.simulated.config, self.simulated.max_model_len)
        missing = [bucket for bucket in needed if bucket not in self.simulated.costs.buckets]
        if missing:
            raise CostError(
                f"no costs of steps of {missing[0].slots} slots and {missing[0].tokens} tokens: measure them "
                "with the sizes to simulate (`jbatch bench calibrate`)"
            )
