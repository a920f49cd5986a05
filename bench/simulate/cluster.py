"""Several simulated engines behind a router: one queue, each request routed as it comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np

from bench.ladder.arms import Arm
from bench.measure.drive import forced_params
from bench.simulate.hardware import Derived
from bench.simulate.subject import Simulated, SimulatedSubject
from bench.workloads.workload import WorkItem, Workload
from jbatch.engine.engine import Engine
from jbatch.engine.records import EngineStep
from jbatch.errors import UserFunctionError
from jbatch.host.request import Request
from jbatch.host.router import EngineLoad, Router
from jbatch.sim.clock import VirtualClock
from jbatch.sim.cost import Cost, CostTable


class Cluster(NamedTuple):
    """What came of a workload on several engines. Times are seconds of the simulated clock.

    Attributes:
      imbalance: the busiest engine's time over the mean of all.
    """

    makespan: float
    output_throughput: float
    mean_ttft: float
    mean_e2el: float
    p99_e2el: float
    imbalance: float
    hit_rate: float


class Replica:
    """An engine, and what it has still to do."""

    def __init__(self, engine: Engine, speed: float):
        self.engine, self.speed = engine, speed
        assert isinstance(engine.clock, VirtualClock)
        self.clock = engine.clock
        self._left: dict[str, int] = {}  # tokens of each request
        self.ended: list[tuple[float, float]] = []  # TTFT and E2EL of each request
        self.last = self.busy = 0.0

    @property
    def load(self) -> EngineLoad:
        """For a router."""
        return EngineLoad(len(self._left), sum(self._left.values()), self.speed)

    def take(self, name: str, item: WorkItem) -> None:
        """Add a request, which comes at its time."""
        if not self.engine.has_unfinished:
            self.clock.advance_to(item.arrival)
        params = forced_params(item.output_len)
        self.engine.add_request(name, item.prompt_token_ids, params, arrival=item.arrival)
        self._left[name] = len(item.prompt_token_ids) + item.output_len

    def run_until(self, moment: float) -> None:
        """Step while there is something to do before `moment`."""
        while self.engine.has_unfinished and self.clock() < moment:
            begin = self.clock()
            self._note(self.engine.step())
            self.busy += self.clock() - begin
            self.last = self.clock()

    def _note(self, step: EngineStep) -> None:
        for new in step.progress:
            if new.request_id in self._left:
                self._left[new.request_id] -= len(new.token_ids)
        for output in step.outputs:
            metrics = output.metrics
            assert metrics is not None and metrics.first_token_ts is not None
            began, first, end = metrics.arrival_time, metrics.first_token_ts, metrics.finished_ts
            self.ended.append((first - began, end - began))
            del self._left[output.request_id]


def run_cluster(
    sim: Simulated, arm: Arm, workload: Workload, router: Router, speeds: Sequence[float], seed: int
) -> Cluster:
    """Route a workload over one engine for each of `speeds`."""
    replicas = []
    for number, speed in enumerate(speeds):
        subject = SimulatedSubject(sim._replace(costs=faster(sim.costs, speed)), seed=seed + number)
        replicas.append(Replica(subject.new_engine(arm, subject.max_num_seqs), speed))
    for number, item in enumerate(workload.items):
        for replica in replicas:
            replica.run_until(item.arrival)
        request = Request(
            str(number), item.prompt_token_ids, forced_params(item.output_len), item.output_len, (), 0
        )
        idx = _routed(router, request, [replica.load for replica in replicas])
        replicas[idx].take(str(number), item)
    for replica in replicas:
        replica.run_until(float("inf"))
    return _outcome(workload, replicas)


def _routed(router: Router, request: Request, loads: Sequence[EngineLoad]) -> int:
    """The index that a router gives. Raises UserFunctionError for what is none."""
    idx = router.route(request, loads)
    if not isinstance(idx, Integral) or not 0 <= int(idx) < len(loads):
        reason = f"it must give an index from 0 to {len(loads) - 1}, and gave {idx!r:.80}"
        raise UserFunctionError("router", router, reason)
    return int(idx)


def _outcome(workload: Workload, replicas: Sequence[Replica]) -> Cluster:
    latencies = np.array([latency for replica in replicas for latency in replica.ended])
    makespan = max(replica.last for replica in replicas)
    busy = np.array([replica.busy for replica in replicas])
    found = sum(replica.engine.summary.found for replica in replicas)
    looked_up = sum(replica.engine.summary.looked_up for replica in replicas)
    mean_ttft, mean_e2el = latencies.mean(axis=0).tolist()
    return Cluster(
        makespan,
        workload.num_output_tokens / makespan,
        mean_ttft,
        mean_e2el,
        p99_e2el=float(np.percentile(latencies[:, 1], 99)),
        imbalance=float(busy.max() / busy.mean()),
        hit_rate=found / looked_up if looked_up else 0.0,
    )


def faster(costs: Cost, speed: float) -> Cost:
    """Costs of a device that is `speed` times as fast; the host stays as it is."""
    if isinstance(costs, CostTable):
        buckets = {
            bucket: cost._replace(**{name: getattr(cost, name) / speed for name in cost._fields[:5]})
            for bucket, cost in costs.buckets.items()
        }
        return dataclasses.replace(costs, buckets=buckets)
    assert isinstance(costs, Derived)
    floor = costs.floor._replace(
        read_bytes_per_s=costs.floor.read_bytes_per_s * speed,
        gemm_flop_per_s=costs.floor.gemm_flop_per_s * speed,
    )
    return costs._replace(floor=floor, launches_s=costs.launches_s / speed)
