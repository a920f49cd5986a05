"""What an engine needs of whoever computes its steps."""

from __future__ import annotations

from typing import Protocol, TypeVar

from jbatch.sampler import Sampler
from jbatch.seam.step_input import StepInput
from jbatch.seam.step_output import StepOutput
from jbatch.seam.tenancy import Tenancy

Handle = TypeVar("Handle")


class Runner(Protocol[Handle]):
    """Computes steps in the order in which they are submitted. `jbatch.device.runner` has the real one."""

    @property
    def tenancy(self) -> Tenancy:
        """Whose requests its state holds. A runner that wraps another one gives the other's."""

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The ways of drawing tokens that are compiled."""

    @property
    def counts_all(self) -> bool:
        """Whether every sequence's token counts are needed on the device, not only those with penalties."""

    def submit(self, step: StepInput) -> Handle:
        """Begin a step; returns before it has ended."""

    def is_ready(self, handle: Handle) -> bool:
        """Whether a step has ended, so that `collect` does not wait."""

    def collect(self, handle: Handle) -> tuple[StepOutput, float]:
        """Wait for a step's output; with it, when it was there (time.monotonic, seconds)."""
