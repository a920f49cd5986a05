"""What is tried: options of an engine, and the engine that they make of measured or derived costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.simulate.subject import Simulated
from bench.tune.estimate import costs_for, largest_sizes
from jbatch.config import DECODE_SIZES, AdmissionName, EngineConfig, PolicyName
from jbatch.seam.bucket import buckets_of
from jbatch.sim.cost import CostTable

LARGEST_DERIVED = 512, 8192  # slots and prompt tokens, where costs are derived and have no end
SMALLEST_BUDGET = 32


class Candidate(NamedTuple):
    """Options of an engine. Buckets of None are those that an engine has by default."""

    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int
    policy: PolicyName = "fcfs"
    admission: AdmissionName = "optimistic"
    decode_buckets: tuple[int, ...] | None = None
    token_buckets: tuple[int, ...] | None = None

    def options(self) -> dict[str, Any]:
        """As LLM takes them."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Field(NamedTuple):
    """What may be chosen: for each page size an engine on costs that hold for it, and all other values.

    The token capacity of the page pool is that of the first engine, whatever the page size: memory decides
    it, and no option.
    """

    by_page_size: Mapping[int, Simulated]
    policies: Sequence[PolicyName] = ("fcfs",)
    admissions: Sequence[AdmissionName] = ("optimistic",)

    @property
    def default(self) -> Candidate:
        """The defaults of an engine, as far as there are costs for them."""
        sizes = list(self.by_page_size)
        page_size = EngineConfig.page_size if EngineConfig.page_size in sizes else sizes[0]
        slots, tokens = _largest(self.by_page_size[page_size])
        return Candidate(
            min(EngineConfig.max_num_seqs, slots), min(EngineConfig.max_num_batched_tokens, tokens), page_size
        )

    def axes(self) -> dict[str, list[Any]]:
        """The values of each option, by its name, in the order in which they are searched."""
        slots, tokens = (min(sizes) for sizes in zip(*map(_largest, self.by_page_size.values()), strict=True))
        above = range(DECODE_SIZES[-1] * 2, slots + 1, DECODE_SIZES[-1])
        budgets = [SMALLEST_BUDGET << power for power in range(16) if SMALLEST_BUDGET << power < tokens]
        return {
            "max_num_seqs": sorted({*(size for size in DECODE_SIZES if size < slots), *above, slots}),
            "max_num_batched_tokens": [*budgets, tokens],
            "page_size": sorted(self.by_page_size),
            "policy": list(self.policies),
            "admission": list(self.admissions),
        }

    def simulated(self, candidate: Candidate) -> Simulated:
        """The engine of a candidate. Raises ConfigError for options that do not go together."""
        capacity = next(iter(self.by_page_size.values()))
        num_tokens = (capacity.num_pages - 1) * capacity.config.page_size
        sim = self.by_page_size[candidate.page_size]
        config = dataclasses.replace(sim.config, **candidate.options())
        costs = sim.costs
        if isinstance(costs, CostTable):
            costs = costs_for(costs, buckets_of(config, sim.max_model_len))
        num_pages = 1 + num_tokens // candidate.page_size
        return sim._replace(config=config, num_pages=num_pages, costs=costs)


def _largest(sim: Simulated) -> tuple[int, int]:
    """Slots and prompt tokens of the largest steps that there are costs of."""
    return largest_sizes(sim.costs) if isinstance(sim.costs, CostTable) else LARGEST_DERIVED
