"""A cluster of replicas on the fake runner, in this process, any of which may be lost at any time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

from jbatch.integrations.ray_data import job as ray_job
from jbatch.integrations.ray_data.fleet import ReplicaLost
from jbatch.integrations.ray_data.replica import Replica


class LocalHandle:
    """A replica on the loop of its cluster."""

    def __init__(self, cluster: LocalCluster, replica: Replica, number: int):
        self.cluster, self.replica, self.number = cluster, replica, number
        self.is_lost = False

    def load(self) -> Future:
        return self._ask(self.replica.load())

    def exchange(self, lines) -> Future:
        self.cluster.num_lines[self.number] += len(lines)
        return self._ask(self.replica.exchange(lines))

    def _ask(self, coroutine) -> Future:
        future = asyncio.run_coroutine_threadsafe(coroutine, self.cluster.loop)
        future.handle = self
        return future

    def kill(self) -> None:
        self.is_lost = True


class LocalCluster:
    """Loses a replica where `loses(handle, given)` says so: after it was asked, and before it says."""

    def __init__(self, model, needs, loses: Callable = lambda handle, given: False):
        self._model, self._needs, self._loses = model, needs, loses
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.handles: list[LocalHandle] = []
        self.num_lines: list[int] = []  # that each replica was given

    def start(self) -> LocalHandle:
        self.num_lines.append(0)
        self.handles.append(LocalHandle(self, Replica(self._model, self._needs), len(self.handles)))
        return self.handles[-1]

    def wait(self, refs, timeout_s):
        return list(wait(refs, timeout_s, return_when="FIRST_COMPLETED").done)

    def get(self, ref):
        try:
            given = ref.result()
        except Exception as error:
            raise ReplicaLost(str(error)) from error
        if ref.handle.is_lost or self._loses(ref.handle, given):
            raise ReplicaLost("killed")
        return given


@contextmanager
def instead_of_ray(loses: Callable = lambda handle, given: False, resources: dict | None = None):
    """Lets `--ray` take a local cluster; gives a list that it is put into."""
    made: list[LocalCluster] = []

    @contextmanager
    def connected():
        yield SimpleNamespace(cluster_resources=lambda: resources or {"CPU": 4.0})

    def cluster(model, needs, gpus):
        made.append(LocalCluster(model, needs, loses))
        return made[-1]

    with (
        mock.patch.object(ray_job, "connected", connected),
        mock.patch.object(ray_job, "RayCluster", cluster),
    ):
        yield made
