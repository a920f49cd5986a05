"""A Ray cluster: the one that is named, or one that is started for a job."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jbatch.distribution import install_hint
from jbatch.errors import ConfigError, JBatchError
from jbatch.integrations.ray_data.fleet import ReplicaLost
from jbatch.integrations.ray_data.replica import Exchange, Loaded, Refused, Replica, Routed
from jbatch.jobs.command import JobModel, Needs

STORE_BYTES = 2**28  # of a cluster that is started: lines and results go through it
ADDRESS = "RAY_ADDRESS"
CONNECT_S = 10.0


class RayHandle:
    """A replica in a Ray actor."""

    def __init__(self, actor: Any):
        self._actor = actor

    def load(self) -> Any:
        return self._actor.load.remote()

    def exchange(self, lines: Sequence[Routed]) -> Any:
        return self._actor.exchange.remote(list(lines))

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)


class RayCluster:
    """Starts replicas of a model in Ray actors.

    Args:
      gpus: of each replica.
    """

    def __init__(self, model: JobModel, needs: Needs, gpus: int):
        import ray

        replica = ray.remote(Replica).options(num_cpus=1, num_gpus=gpus, max_restarts=0)
        self._start = lambda: replica.remote(model, needs)

    def start(self) -> RayHandle:
        return RayHandle(self._start())

    def wait(self, refs: list[Any], timeout_s: float) -> list[Any]:
        import ray

        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        if not ready:
            ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        return ready

    def get(self, ref: Any) -> Loaded | Exchange | Refused:
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.RayError as error:
            raise ReplicaLost(_in_short(error)) from error


def _in_short(error: Exception) -> str:
    """The last line that says something: Ray's errors are pages, and end with the cause."""
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()]
    return lines[0] if cause is None and lines else (lines or [type(error).__name__])[-1]


@contextmanager
def connected() -> Iterator[Any]:
    """Ray, connected to the cluster that this process has or RAY_ADDRESS names; else to one that is started
    here, on the loopback device, and ends with this.

    Raises:
      JBatchError: where Ray is not installed.
      ConfigError: where the cluster that is named cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise JBatchError(f"--ray needs Ray ({error}): {install_hint('ray')}") from error
    if ray.is_initialized():
        yield ray
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        _connect(ray)
        for signum, handler in before.items():  # Ray takes SIGTERM, and a job has its own
            signal.signal(signum, handler)
        yield ray
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Raise ConfigError where an address host:port does not answer; any other is Ray's to understand."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        reason = f"the cluster cannot be reached: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(ADDRESS, address, reason) from None


def _connect(ray: Any) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get(ADDRESS)
    if not address:  # not any that runs here: it may be a program's own
        ray.init(
            address="local",
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            num_cpus=os.cpu_count(),
            object_store_memory=STORE_BYTES,
            **quiet,
        )
        return
    check_reachable(address)  # Ray itself would wait for minutes
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # of many kinds
        raise ConfigError(ADDRESS, address, f"the cluster cannot be reached: {_in_short(error)}") from error
