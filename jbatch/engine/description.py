"""What an engine is and what it has done, in a line."""

from __future__ import annotations

from jbatch import shown
from jbatch.host.config import SchedulerConfig
from jbatch.host.metrics import Summary
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.seam.shape import StateShape


def describe_engine(config: SchedulerConfig, num_rows: int, num_unfinished: int, summary: Summary) -> str:
    """Mode, policy and sizes, and how far it has come."""
    modes = [mode for mode, admission in MODES.items() if admission == config.admission]
    policies = [policy for policy, known in POLICIES.items() if known.key is config.policy.key]
    return (
        f"{', '.join([*modes, *policies, *([] if policies else [config.policy.name])])}; "
        f"{shown.count(num_rows, 'sequence')} at once; {describe_cache(config.shape)}; "
        f"{shown.count(num_unfinished, 'unfinished request')}; "
        f"{shown.count(summary.output_tokens)} in {shown.count(summary.num_steps, 'step')}"
    )


def describe_cache(shape: StateShape) -> str:
    """What the pages hold, but for the one that nobody gets."""
    num_pages = shape.num_pages - 1
    return f"cache of {shown.count(num_pages * shape.page_size)} in {num_pages:,} pages"
