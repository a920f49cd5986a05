"""What a scheduler is told when it is made."""

from __future__ import annotations

from typing import NamedTuple

from jbatch.config import AdmissionName, EngineConfig
from jbatch.host.policy import MODES, Admission, Policy
from jbatch.seam.bucket import Bucket
from jbatch.seam.shape import StateShape


class SchedulerConfig(NamedTuple):
    """Everything that a scheduler needs to know."""

    shape: StateShape
    max_model_len: int
    buckets: tuple[Bucket, ...]
    policy: Policy
    admission: Admission
    batch_wait_timeout_s: float = EngineConfig.batch_wait_timeout_s  # where admission waits for full batches
    enable_prefix_caching: bool = EngineConfig.enable_prefix_caching
    reserve: AdmissionName = EngineConfig.admission
    max_preemption_probability: float = EngineConfig.max_preemption_probability

    @property
    def max_seq_len(self) -> int:
        """Tokens, prompt and output, that a sequence may have: what the context and the whole pool hold."""
        return min(self.max_model_len, (self.shape.num_pages - 1) * self.shape.page_size)

    @property
    def least_budget(self) -> int:
        """Prompt tokens of a step with which the first in line always gets on: a page."""
        return min(self.shape.page_size, self.max_seq_len)

    @property
    def largest_bucket(self) -> Bucket:
        """The one with most prompt tokens."""
        return max(self.buckets, key=lambda bucket: bucket.tokens)


def scheduler_config(
    config: EngineConfig, shape: StateShape, max_model_len: int, buckets: tuple[Bucket, ...], policy: Policy
) -> SchedulerConfig:
    """Of an engine: what its options say of scheduling."""
    return SchedulerConfig(
        shape=shape,
        max_model_len=max_model_len,
        buckets=buckets,
        policy=policy,
        admission=MODES[config.mode],
        batch_wait_timeout_s=config.batch_wait_timeout_s,
        enable_prefix_caching=config.enable_prefix_caching,
        reserve=config.admission,
        max_preemption_probability=config.max_preemption_probability,
    )
