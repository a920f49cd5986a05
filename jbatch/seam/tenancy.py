"""Whose requests a device state holds: those of one engine, in the process that made it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from jbatch.errors import JBatchError
from jbatch.seam.loaded import LoadedWeights

CLOSED = "this LLM was closed, and its memory is free: make a new one, or close it later"


class Tenant(Protocol):
    """Who adds requests: an engine."""

    @property
    def num_unfinished(self) -> int:
        """Its requests that have not ended."""


class Tenancy:
    """Whose a runner's rows and pages are: the engine's whose requests have not ended. Those of a second one
    would overwrite them, so it is refused.

    Attributes:
      lock: to be held from a look at who the tenant is, or who drives it, until that has been changed.
      weights: those that steps for the tenant compute with.
      times_lost: how often what pages held became of no use: another tenant came, the weights changed, or the
        device lost its state.
      closed: whether the device's memory was freed: nothing can run any more.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.weights = LoadedWeights()
        self.times_lost = 0
        self.closed = False
        self._pid = os.getpid()
        self._tenant: weakref.ref[Tenant] | None = None  # weak: who is gone holds nobody up

    def take(self, tenant: Tenant) -> None:
        """Become the tenant; `lock` must be held. Raises JBatchError while another one has unfinished
        requests."""
        other = self.tenant
        if other is tenant:
            return
        if other is not None and other.num_unfinished:
            raise JBatchError(
                f"another engine has {other.num_unfinished} unfinished requests on this device state: step "
                "it until they end, or abort them; one engine of an LLM at a time may have any"
            )
        self._tenant = weakref.ref(tenant)
        self.pages_lost()

    def pages_lost(self) -> None:
        """Count that what pages hold is of no use."""
        self.times_lost += 1

    @property
    def tenant(self) -> Tenant | None:
        """Whose requests it holds, or held."""
        return None if self._tenant is None else self._tenant()

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that made the runner."""
        return os.getpid() != self._pid

    def check_open(self) -> None:
        """Raise JBatchError once it is closed."""
        if self.closed:
            raise JBatchError(CLOSED)

    def check_process(self) -> None:
        """Raise JBatchError in a fork, where every use of the device would wait for ever: its threads are
        the parent's."""
        if self.forked:
            raise JBatchError(
                f"this LLM belongs to process {self._pid}, and process {os.getpid()} is a fork of it: make "
                "one in each process (for multiprocessing: the start method 'spawn')"
            )
